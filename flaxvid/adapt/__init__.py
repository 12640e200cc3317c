"""Adapting trained variables: new heads, re-estimated statistics."""
