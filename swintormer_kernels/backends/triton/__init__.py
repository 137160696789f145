"""Triton kernels, for whichever GPU Triton compiles for. Nothing here imports triton before an op asks for it."""
