"""Building blocks that the families share; each can be used alone."""
