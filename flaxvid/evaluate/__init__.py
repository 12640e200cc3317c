"""Evaluation and prediction at any frame count."""
