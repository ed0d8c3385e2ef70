"""What a trained model has learned: attributions, motifs and their names."""
