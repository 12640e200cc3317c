"""Tasks: what training does with a batch, and what a test says of a network."""
