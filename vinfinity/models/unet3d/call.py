"""One way to call the UNet: runs, the traces behind plans, and benchmarks all go through `UNetCall`.

Dims: b guidance branches of this rank, c channels, f this rank's frames, h w latent height and width, t text tokens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vinfinity.models.finite import first_not_finite
from vinfinity.models.offload import Store
from vinfinity.models.unet3d.unet import DeepFeatures, UNet
from vinfinity.parallel.context import TemporalContext


class UNetCall:
    """The UNet's predictions for the frames of one rank, for all guidance branches that the rank computes.

    unet: its weights decide the device and the type of the arithmetic.
    text: (b, t, c), the text states of each branch.
    context_at: the temporal context in force at a training timestep.
    branches_at_once: branches computed in one pass; the others follow one after the other.
    store: where skip connections wait for the decoder half of the UNet.
    fps: frame rate that the model is conditioned on, for models that take one.
    condition: (1, c) embedding of the guidance weight, for distilled models that take one.
    reuse_depth: levels that run in every step while the features below them are reused; None without reuse.
    """

    def __init__(
        self,
        unet: UNet,
        text: Tensor,
        context_at: Callable[[float], TemporalContext],
        *,
        branches_at_once: int,
        store: Store,
        fps: float | None = None,
        condition: Tensor | None = None,
        reuse_depth: int | None = None,
    ) -> None:
        self.unet, self.context_at, self.store, self.condition = unet, context_at, store, condition
        self._device, self.dtype = text.device, unet.conv_in.weight.dtype
        self._fps = None if fps is None or not unet.config.fps_cond else self._scalar(fps)
        self._passes = [
            (chunk, None if reuse_depth is None else DeepFeatures(reuse_depth))
            for chunk in text.split(branches_at_once)
        ]

    def __call__(self, x: Tensor, t: float, *, renew: bool = True) -> Tensor:
        """The predictions (b, c, f, h, w) for latents x (1, c, f, h, w) at training timestep t.

        renew: run the whole UNet and store its deep features, rather than reuse the stored ones. Raises RankError if
        another rank does not answer.
        """
        predictions = []
        for text, deep in self._passes:
            if deep is not None:
                deep.renew = renew
            predictions.append(
                self.unet(
                    x.to(self.dtype).expand(len(text), *x.shape[1:]),
                    self._scalar(t),
                    text,
                    self.context_at(t),
                    fps=self._fps,
                    condition=self.condition,
                    store=self.store,
                    deep=deep,
                )
            )
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def non_finite_layers(self, x: Tensor, t: float, *, renew: bool = True) -> Sequence[str]:
        """The layers whose output is NaN or infinite in this call, in order of execution."""
        with first_not_finite(self.unet) as names:
            self(x, t, renew=renew)
        return names

    def _scalar(self, value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=self._device)
