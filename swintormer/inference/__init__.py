"""Pictures of any size through the network: tiling, memory budgets, CUDA graphs."""
