"""Smaller networks out of trained ones: weights and channels are removed, numbers are rounded."""
