"""Long videos from text, on any number of GPUs, from diffusion models trained on short clips."""

__version__ = "0.1.0"
