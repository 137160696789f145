"""What is to be known of the kernels on a GPU: `python -m bench.gpu.main --out DIR`."""
