"""Decoding latents, and reading and writing media files: videos, sound, contact sheets."""
