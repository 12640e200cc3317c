"""Evaluation: metrics, views, and any-frame accuracy."""
