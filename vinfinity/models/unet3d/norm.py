"""Group normalisation over channels-last memory, of single frames or of the whole video.

Dims: m pictures or videos, p positions (of all frames), c channels, g groups, h w height and width.
For channels-last memory, torch's own kernels take eight times as long on CPUs and make a copy on GPUs. Here, each
channel's statistics are computed along contiguous memory, then pooled.
"""

import torch
from einops import rearrange
from torch import Tensor, nn


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute two moments of each channel over the positions, for `group_moments`.

    x: (m, p, c). Returns two tensors (m, c) fp32: mean and variance, in two passes; for 16 bits, mean and Euclidean
    norm, in one pass, on GPUs without a copy in fp32. The squares of 11 significant bits fit fp32, and cancellation in
    E[x²] - E[x]² stays below the rounding error of x.
    """
    if x.dtype.itemsize < 4 and x.device.type == "cpu":
        # means in 16 bits make this copy anyway, and norms along a middle dimension take ten times as long
        exact = x.float()
        return exact.mean(1), exact.square_().sum(1).sqrt_()
    mean = x.mean(1, dtype=torch.float32)
    if x.dtype.itemsize >= 4:
        return mean, (x.float() - mean[:, None]).square_().mean(1)
    return mean, torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)


def group_moments(
    mean: Tensor, second: Tensor, groups: int, *, norm_of: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pool the moments of each group of channels into its mean and variance (Chan et al. 1983, for equal parts).

    mean, second: (m, c), the `channel_moments`. norm_of: the number of positions if `second` is a norm; None if it is a
    variance. Returns two tensors (m, g) fp32.
    """
    mean, second = mean.unflatten(1, (groups, -1)), second.unflatten(1, (groups, -1))
    pooled = mean.mean(-1)
    if norm_of is None:
        return pooled, (second + (mean - pooled[..., None]).square()).mean(-1)
    square = torch.linalg.vector_norm(second, dim=-1).square_().div_(norm_of * second.shape[-1])
    return pooled, square.addcmul_(pooled, pooled, value=-1).clamp_(min=0)


def group_affine(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and shift that a GroupNorm with these moments applies to its input.

    mean, variance: (m, g) fp32. Returns two tensors (m, c) fp32.
    """
    # fp32 in every run, see Network.fp32_parameters
    weight, bias = (x.float().view(norm.num_groups, -1) for x in (norm.weight, norm.bias))
    scale = weight * torch.rsqrt(variance + norm.eps)[..., None]
    shift = torch.addcmul(bias, mean[..., None], scale, value=-1)
    return scale.flatten(1), shift.flatten(1)


def apply_affine(x: Tensor, scale: Tensor, shift: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute x * scale + shift in fp32 and return it in the type of x, for 16 bits without a copy in fp32.

    x: any shape. scale, shift: fp32, broadcast against x. out: where to write the result.
    """
    if x.dtype.itemsize >= 4:
        result = torch.addcmul(shift, x, scale).to(x.dtype)
        return result if out is None else out.copy_(result)
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x) if out is None else out)


class GroupNorm(nn.GroupNorm):
    """GroupNorm over each picture separately."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (m, c, h, w), preferably channels_last. Returns the same shape, channels_last."""
        h = x.shape[2]
        rows = rearrange(x, "m c h w -> m (h w) c")
        norm_of = rows.shape[1] if rows.dtype.itemsize < 4 else None
        moments = group_moments(*channel_moments(rows), self.num_groups, norm_of=norm_of)
        scale, shift = group_affine(self, *moments)
        normed = apply_affine(rows, scale[:, None], shift[:, None])
        return rearrange(normed, "m (h w) c -> m c h w", h=h)
