"""Losses, optimizers, the sharded update step, checkpoints and the loop around them."""
