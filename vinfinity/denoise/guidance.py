"""Classifier-free guidance (Ho and Salimans 2022)."""

from torch import Tensor


def guidance_branches(weight: float, *, distilled: bool) -> int:
    """Predictions of the UNet in a step: 2, without and with the prompt, or 1 without guidance.

    distilled: whether the model takes the guidance weight as an input instead.
    """
    return 1 if weight <= 1 or distilled else 2


def guide(predictions: Tensor, scale: float) -> Tensor:
    """Moves the prediction away from the one without the prompt.

    predictions: (2, c, f, h, w), without and with the prompt, or (1, c, f, h, w) without guidance.
    Returns (1, c, f, h, w).
    """
    if predictions.shape[0] == 1:
        return predictions
    without, with_prompt = predictions.chunk(2)
    return without + scale * (with_prompt - without)
