"""Tasks: each owns the forward pass of training and returns a loss."""
