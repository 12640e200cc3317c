"""Weights in and out: PyTorch's keys (`torch`), the files of others (`tensors`), known files by name (`download`), our
own files (`native`)."""
