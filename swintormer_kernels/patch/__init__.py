"""The ops in other people's models: `optimize` and `restore`."""
