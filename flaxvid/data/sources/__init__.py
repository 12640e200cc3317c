"""Where videos and labels come from."""
