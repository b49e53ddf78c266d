"""Rotary positions in time, height and width (Su et al. 2021). Attention sees only their differences.

Dims: n positions, d head width. A head's channels are split into three parts, for time, height and width. In each,
neighbouring channels form pairs, which are rotated by angles proportional to the position.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0


def time_width(head_width: int) -> int:
    """Return how many channels of a head are for time; height and width share the others equally."""
    return head_width - 4 * (head_width // 6)


def rotations(positions: Sequence[int], width: int) -> Tensor:
    """Return cosines and sines of the angles of `width` channels: (2, n, width/2) fp32, computed in fp64."""
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.tensor(list(positions), dtype=torch.float64)[:, None] / THETA**exponents
    return torch.stack([angles.cos(), angles.sin()]).float()


def picture_rotations(height: int, width: int, head_width: int) -> Tensor:
    """Return the rotations in height and width of a frame's tokens: (2, height·width, m).

    They are for the channels after the temporal ones.
    """
    side = 2 * (head_width // 6)
    rows = rotations(range(height), side)[:, :, None].expand(-1, -1, width, -1)
    columns = rotations(range(width), side)[:, None].expand(-1, height, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(1, 2)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels of x (..., 2m) in place, in fp32. turns: (2, ..., m). Returns x."""
    cos, sin = turns
    first, second = x[..., 0::2].float(), x[..., 1::2].float()
    turned = first * cos - second * sin
    x[..., 1::2] = first * sin + second * cos
    x[..., 0::2] = turned
    return x
