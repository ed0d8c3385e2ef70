"""What `import l2g_ray` offers, and the command line calls: requests, runs, predictors."""
