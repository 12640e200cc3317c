"""Reports of a finished or running run, read from nothing but its folder."""
