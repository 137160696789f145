"""Checkpoints: a network with its prior, its training tile and its model card in one file."""
