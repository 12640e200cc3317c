"""Checks and stores a data set."""
