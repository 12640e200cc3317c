"""Trained networks at work: prediction."""
