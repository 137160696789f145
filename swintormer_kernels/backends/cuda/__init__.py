"""CUDA C++ kernels (csrc/cuda/kernels): bfloat16 and float16, channels_last, forward. Gradients are Triton's."""
