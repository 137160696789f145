"""The reference backend: plain torch, operation by operation as in the released network. Tests compare with it."""
