"""How well a network restores: metrics, the held-out photographs, classical baselines, tables."""
