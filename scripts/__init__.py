"""Run from a checkout as modules: `python -m scripts.reproduce`."""
