"""Weights in and out: PyTorch files (`torch`), known files by name (`download`), our own files (`native`)."""
