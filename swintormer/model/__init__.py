"""The restoration network: its sizes, its layers, and the fusion with a latent prior."""
