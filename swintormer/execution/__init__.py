"""How any network here is run: the tiles of a large image, and CUDA graphs of repeated passes."""
