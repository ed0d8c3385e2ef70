"""MLflow: its store, a tree of runs that can be written twice, and what an event becomes in it."""
