"""Training: the recipe, the mesh, the step, the loop, and what a run leaves behind."""
