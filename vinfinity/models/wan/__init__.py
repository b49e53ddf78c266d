"""Wan 2.1: a diffusion transformer over latent frames, with a causal autoencoder and UMT5 text states."""
