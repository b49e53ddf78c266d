"""Group normalisation over channels-last memory, of single frames or of the whole video.

Dims: m pictures or videos, p positions (of all frames), c channels, g groups, h w height and width.
For channels-last memory, torch's own kernels take eight times as long on CPUs and make a copy on GPUs. Here, the
statistics of each channel are taken along contiguous memory and pooled.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def channel_moments(x: Tensor) -> Tensor:
    """Two moments of each channel over the positions, from which `group_moments` follow.

    x: (m, p, c). Returns (2, m, c) fp32: mean and variance, in two passes; for 16 bits mean and mean square, in one
    pass without a copy in fp32. The squares of 11 significant bits fit fp32, and what cancels when the square of the
    mean is subtracted is below the rounding of x.
    """
    mean = x.mean(1, dtype=torch.float32)
    if x.dtype.itemsize >= 4:
        return torch.stack([mean, (x.float() - mean[:, None]).square_().mean(1)])
    norm = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return torch.stack([mean, norm.square_().div_(x.shape[1])])


def group_moments(moments: Tensor, groups: int, *, half: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels: those of a union of equal parts (Chan et al. 1983).

    moments: (2, m, c), see `channel_moments`. half: whether they are of a 16-bit tensor. Returns two tensors (m, g)
    fp32.
    """
    mean, second = moments.unflatten(2, (groups, -1)).unbind(0)
    pooled = mean.mean(-1)
    if half:
        return pooled, (second.mean(-1) - pooled.square()).clamp_(min=0)
    return pooled, (second + (mean - pooled[..., None]).square()).mean(-1)


def group_affine(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and shift by which a GroupNorm with these moments transforms its input.

    mean, variance: (m, g) fp32. Returns two tensors (m, c) fp32.
    """
    weight, bias = (x.float().view(norm.num_groups, -1) for x in (norm.weight, norm.bias))
    scale = weight * torch.rsqrt(variance + norm.eps)[..., None]
    shift = torch.addcmul(bias, mean[..., None], scale, value=-1)
    return scale.flatten(1), shift.flatten(1)


def apply_affine(x: Tensor, scale: Tensor, shift: Tensor, *, out: Tensor | None = None) -> Tensor:
    """x * scale + shift, computed in fp32 and returned in the type of x, for 16 bits without a copy in fp32.

    x: any shape. scale, shift: fp32, broadcast against x. out: where to write the result.
    """
    if x.dtype.itemsize >= 4:
        result = torch.addcmul(shift, x, scale).to(x.dtype)
        return result if out is None else out.copy_(result)
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x) if out is None else out)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of each picture separately."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (m, c, h, w), preferably channels_last. Returns the same shape, channels_last."""
        h = x.shape[2]
        rows = rearrange(x, "m c h w -> m (h w) c")
        half = rows.dtype.itemsize < 4
        scale, shift = group_affine(self, *group_moments(channel_moments(rows), self.num_groups, half=half))
        normed = apply_affine(rows, scale[:, None], shift[:, None])
        return rearrange(normed, "m (h w) c -> m c h w", h=h)
