"""Model families, one folder each, with their networks as plain torch modules.

Networks import torch, einops and the types of vinfinity.parallel. Architectures (configs.py) and family descriptions
(family.py) do not load torch.
"""
