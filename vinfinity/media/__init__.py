"""From latents to files: decoding, MP4s and contact sheets."""
