"""A training run: task, data, checkpoints, weights."""
