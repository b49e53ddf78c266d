"""Decoding latents, and reading and writing media files: videos, audio, contact sheets."""
