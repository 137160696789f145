"""Photographs of any size through the network: the `Deblurrer`, and the memory that it takes."""
