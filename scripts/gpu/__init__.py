"""Scripts for a bare GPU machine: see `run.sh`."""
