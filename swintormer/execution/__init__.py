"""Tools to run a network, the restoration network or the prior: tiles of a large image, and CUDA graphs."""
