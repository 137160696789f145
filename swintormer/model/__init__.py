"""The restoration network: its sizes, its layers, and how a latent prior enters it."""
