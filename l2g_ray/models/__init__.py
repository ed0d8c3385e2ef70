"""Backbones, the mixed convolution, the embedder and the language model."""
