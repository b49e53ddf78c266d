"""The only way to call the UNet: runs, benchmarks and the traces behind plans all go through `UNetCall`.

Dims: b guidance branches of this rank, c channels, f this rank's frames, h w latent height and width, t text tokens.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vinfinity.models.finite import first_not_finite
from vinfinity.models.frame_text import FrameText
from vinfinity.models.network_call import CallOptions
from vinfinity.models.unet3d.unet import DeepFeatures, UNet
from vinfinity.parallel.context import TemporalContext
from vinfinity.system.precision import fp32_products


class UNetCall:
    """Predicts the frames of one rank: see `NetworkCall`, and `Family.network_call`.

    Skip connections wait in the store for the second half of the UNet.
    """

    def __init__(
        self,
        unet: UNet,
        text: FrameText,
        context_at: Callable[[float], TemporalContext],
        options: CallOptions,
    ) -> None:
        self.network, self.context_at, self.store = unet, context_at, options.store
        self._device, self.dtype = text.states.device, unet.conv_in.weight.dtype
        self._fps = self._scalar(options.fps) if unet.config.fps_cond else None
        width, depth = unet.config.time_cond_proj_dim, options.reuse_depth
        self._condition = (
            None if width is None else guidance_features(options.guidance, width).to(self._device)
        )
        self._passes = [
            (chunk, None if depth is None else DeepFeatures(depth))
            for chunk in text.split(options.branches_at_once)
        ]

    @property
    def middle(self) -> nn.Module:
        """The middle block: all skip connections are alive when it starts."""
        return self.network.mid_block

    def __call__(self, x: Tensor, t: float, *, renew: bool = True) -> Tensor:
        """Return the predictions (b, c, f, h, w) for latents x (1, c, f, h, w) at training timestep t.

        renew: run the whole UNet and store its deep features, rather than reuse the stored ones. Raises RankError if
        another rank does not answer.
        """
        predictions = []
        for text, deep in self._passes:
            if deep is not None:
                deep.renew = renew
            with fp32_products(tf32=False):
                predictions.append(
                    self.network(
                        x.to(self.dtype).expand(len(text.states), *x.shape[1:]),
                        self._scalar(t),
                        text,
                        self.context_at(t),
                        fps=self._fps,
                        condition=self._condition,
                        store=self.store,
                        deep=deep,
                    )
                )
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def non_finite_layers(self, x: Tensor, t: float, *, renew: bool = True) -> Sequence[str]:
        """List the layers whose output is NaN or infinite in this call, in order of execution."""
        with first_not_finite(self.network) as names:
            self(x, t, renew=renew)
        return names

    def _scalar(self, value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=self._device)


def guidance_features(weight: float, width: int) -> Tensor:
    """Return sines, then cosines of 1000 times the guidance scale, at width/2 geometric frequencies from 1 to 1/10000.

    These are the input of `time_cond_proj` (Meng et al. 2023, section 3; T2V-Turbo). Returns (1, width) fp32.
    """
    half = width // 2
    frequencies = torch.exp(-torch.arange(half, dtype=torch.float32) * (math.log(10000.0) / (half - 1)))
    angles = 1000.0 * weight * frequencies[None, :]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width % 2))
