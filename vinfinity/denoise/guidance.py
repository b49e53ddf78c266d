"""Classifier-free guidance (Ho and Salimans 2022), and the guidance input of distilled models."""

import math

import torch
import torch.nn.functional as F
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


def guidance_features(weight: float, width: int) -> Tensor:
    """Sines, then cosines of 1000 times the weight of guidance at width/2 geometric frequencies from 1 to 1/10000.

    The input of `time_cond_proj` (Meng et al. 2023, section 3; T2V-Turbo). Returns (1, width) fp32.
    """
    half = width // 2
    frequencies = torch.exp(-torch.arange(half, dtype=torch.float32) * (math.log(10000.0) / (half - 1)))
    angles = 1000.0 * weight * frequencies[None, :]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width % 2))
