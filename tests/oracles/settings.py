"""Configurations for tests that need no particular model."""

from vinfinity.config import RunConfig, load
from vinfinity.weights.card import model_defaults


def run_config(**settings: object) -> RunConfig:
    """Return a configuration of the embedded model: its card, the defaults, and some settings, as Python gives them."""
    return load(None, settings=settings, card=model_defaults).config
