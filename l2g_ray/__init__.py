"""l2g_ray: text language models as genomics predictors (L2G), searched and trained on Ray."""

__version__ = "0.1.0"
