"""Weight files: safe readers, checkpoints that describe themselves, and sizes inferred from tensor shapes."""
