"""Low-rank additions to a weight (Hu et al. 2021): the product of two factors, `up` and `down`."""

import math
from collections.abc import Sequence

from torch import Tensor


def low_rank_product(up: Tensor, down: Tensor, shape: Sequence[int]) -> Tensor:
    """up @ down, as a weight of `shape`. For a convolution, `down` has its kernel and `up` a kernel of 1."""
    return (up.flatten(1) @ down.flatten(1)).reshape(tuple(shape))


def factors_fit(up: tuple[int, ...], down: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether factors of these shapes multiply to a weight of that shape."""
    if min(len(down), len(up), len(weight)) < 2 or up[1] != down[0]:
        return False
    return up[0] == weight[0] and math.prod(up[2:]) == 1 and down[1:] == weight[1:]
