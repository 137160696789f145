"""Mutated pictures and checkpoints against the readers: nothing may crash, hang, or give a wrong picture in silence."""
