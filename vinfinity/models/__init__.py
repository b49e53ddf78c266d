"""The families of models: one folder each, with their networks as plain torch modules.

Networks import torch, einops and the types of vinfinity.parallel. Architectures (configs.py) and the description of a
family (family.py) load no torch.
"""
