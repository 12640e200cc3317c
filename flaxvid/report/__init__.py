"""Reports of runs, finished or not. They read only a run's folder."""
