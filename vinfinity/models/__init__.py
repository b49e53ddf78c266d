"""The networks as plain torch modules: 3-D UNet, autoencoder, text encoder.

They see torch, einops and the types of vinfinity.parallel, nothing else.
"""
