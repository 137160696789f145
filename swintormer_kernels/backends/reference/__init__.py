"""Plain torch, op for op what the released network does: the truth that every other backend is checked against."""
