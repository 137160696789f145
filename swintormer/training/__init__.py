"""Training runs: configuration, loop, state, stages and losses."""
