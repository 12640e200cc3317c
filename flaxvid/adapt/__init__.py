"""Adapting trained variables: new heads, 2-D weights for 3-D networks, frozen parts, re-estimated statistics."""
