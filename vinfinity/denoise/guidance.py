"""Classifier-free guidance (Ho and Salimans 2022)."""

from torch import Tensor


def guidance_branches(scale: float, *, distilled: bool) -> int:
    """Return how many predictions the denoiser makes in a step: 2, without and with the prompt, or 1 without guidance.

    scale: the guidance scale. distilled: whether the model takes the scale as an input instead.
    """
    return 1 if scale <= 1 or distilled else 2


def guide(predictions: Tensor, scale: float) -> Tensor:
    """Move the prediction away from the one without the prompt; return (1, c, f, h, w).

    predictions: (2, c, f, h, w), without and with the prompt, or (1, c, f, h, w) without guidance.
    """
    if predictions.shape[0] == 1:
        return predictions
    without, with_prompt = predictions.chunk(2)
    return without + scale * (with_prompt - without)
