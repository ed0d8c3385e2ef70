"""Several settings of one task side by side: ablations, baselines, scaling."""
