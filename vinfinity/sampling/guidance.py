"""Classifier-free guidance (Ho and Salimans 2022)."""

from torch import Tensor


def guide(predictions: Tensor, scale: float) -> Tensor:
    """Moves the prediction away from the one without the prompt.

    predictions: (2, c, f, h, w), without and with the prompt, or (1, c, f, h, w) where nothing guides.
    Returns (1, c, f, h, w).
    """
    if predictions.shape[0] == 1:
        return predictions
    without, with_prompt = predictions.chunk(2)
    return without + scale * (with_prompt - without)
