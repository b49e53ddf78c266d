"""Who holds which frames and how ranks talk: the only package that imports torch.distributed."""
