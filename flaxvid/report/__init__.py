"""Reports of a run, finished or not; they read its folder and nothing else."""
