"""All that is to be known of the kernels on a GPU, in one command: `python -m bench.gpu --out DIR`."""
