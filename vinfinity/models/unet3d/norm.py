"""Group normalisation over channels-last memory, of single frames or of the whole video.

Dims: m pictures or videos, p positions (of all frames), c channels, g groups, h w height and width.
For channels-last memory, torch's own kernels take eight times as long on CPUs and make a copy on GPUs. Here, the
statistics of each channel are taken along contiguous memory and pooled.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def pool(moments: Tensor, *, dim: int) -> Tensor:
    """Mean and variance of the union of parts of equal size (Chan et al. 1983).

    moments: (..., 2) fp32, the parts along `dim`. Returns (..., 2) without `dim`.
    """
    mean, variance = moments.unbind(-1)
    pooled_mean = mean.mean(dim, keepdim=True)
    pooled_variance = (variance + (mean - pooled_mean).square()).mean(dim)
    return torch.stack([pooled_mean.squeeze(dim), pooled_variance], dim=-1)


def group_moments(x: Tensor, groups: int) -> Tensor:
    """Mean and variance over positions and the channels of each group.

    x: (m, p, c). Returns (m, g, 2) fp32. In two passes in fp32. In 16 bits in one, without a copy in fp32: the squares
    of 11 significant bits fit fp32, and what cancels in the difference is below the rounding of x.
    """
    mean = x.mean(1, dtype=torch.float32)
    if x.dtype.itemsize >= 4:
        variance = (x.float() - mean[:, None]).square_().mean(1)
    else:
        norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
        variance = (norm.square() / x.shape[1] - mean.square()).clamp_(min=0)
    return pool(torch.stack([mean, variance], dim=-1).unflatten(1, (groups, -1)), dim=2)


def group_affine(norm: nn.GroupNorm, moments: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift by which a GroupNorm with these moments transforms its input.

    moments: (m, g, 2) fp32. Returns two tensors (m, c) fp32.
    """
    mean, variance = (
        x.repeat_interleave(norm.num_channels // norm.num_groups, dim=1) for x in moments.unbind(-1)
    )
    scale = norm.weight.float() * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias.float() - mean * scale


def apply_affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift, computed in fp32 and returned in the type of x, without a copy in fp32.

    x: any shape. scale, shift: fp32, broadcast against x.
    """
    if x.dtype.itemsize >= 4:
        return torch.addcmul(shift, x, scale).to(x.dtype)
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x))


class GroupNorm(nn.GroupNorm):
    """GroupNorm of each picture separately."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (m, c, h, w), preferably channels_last. Returns the same shape, channels_last."""
        h = x.shape[2]
        rows = rearrange(x, "m c h w -> m (h w) c")
        scale, shift = group_affine(self, group_moments(rows, self.num_groups))
        normed = apply_affine(rows, scale[:, None], shift[:, None])
        return rearrange(normed, "m (h w) c -> m c h w", h=h)
