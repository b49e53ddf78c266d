"""Which rank holds which frames, and how ranks exchange messages: the only package that imports torch.distributed."""
