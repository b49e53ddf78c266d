"""The only way to call the transformer: runs, benchmarks and the traces behind plans all go through `WanCall`.

Dims: b guidance branches of this rank, c channels, f this rank's latent frames, h w latent height and width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vinfinity.models.finite import first_not_finite
from vinfinity.models.frame_text import FrameText
from vinfinity.models.network_call import CallOptions
from vinfinity.models.wan.transformer import Transformer
from vinfinity.parallel.context import TemporalContext
from vinfinity.system.precision import fp32_products


class WanCall:
    """Predicts the latent frames of one rank: see `NetworkCall`, and `Family.network_call`."""

    def __init__(
        self,
        transformer: Transformer,
        text: FrameText,
        context_at: Callable[[float], TemporalContext],
        options: CallOptions,
    ) -> None:
        self.network, self.context_at = transformer, context_at
        self.dtype = transformer.patch_embedding.weight.dtype
        self._passes = text.split(options.branches_at_once)
        self._embedded: list[FrameText] | None = None

    @property
    def middle(self) -> nn.Module | None:
        """None: no hidden states wait for a later layer."""
        return None

    def __call__(self, x: Tensor, t: float, *, renew: bool = True) -> Tensor:
        """Return the predictions (b, c, f, h, w) for latents x (1, c, f, h, w) at training timestep t.

        Raises RankError if another rank does not answer.
        """
        with fp32_products(tf32=False):
            if self._embedded is None:
                self._embedded = [self.network.embed_text(text) for text in self._passes]
            time = torch.full((1,), t, dtype=torch.float32, device=x.device)
            predictions = [
                self.network(
                    x.to(self.dtype).expand(len(text.states), *x.shape[1:]), time, text, self.context_at(t)
                )
                for text in self._embedded
            ]
        return predictions[0] if len(predictions) == 1 else torch.cat(predictions)

    def non_finite_layers(self, x: Tensor, t: float, *, renew: bool = True) -> Sequence[str]:
        """List the layers whose output is NaN or infinite in this call, in order of execution."""
        with first_not_finite(self.network) as names:
            self(x, t, renew=renew)
        return names
