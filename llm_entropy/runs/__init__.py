"""Being one process of a run."""
