"""The embedded data set `motion`."""
