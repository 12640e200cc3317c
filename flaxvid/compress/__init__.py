"""Compression: folded norms, int8, pruning, and the cost of a model."""
