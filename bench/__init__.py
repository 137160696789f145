"""Times of ops, networks and denoisers: `pytest bench/`, and on a GPU `python -m bench.gpu --out DIR`."""
