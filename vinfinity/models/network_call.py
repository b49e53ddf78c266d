"""The interface for calling a denoising network, whichever family it belongs to.

Dims: b guidance branches of this rank, c channels, f this rank's latent frames, h w latent height and width, t text
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vinfinity.models.offload import Store


@dataclass(frozen=True)
class CallOptions:
    """What a call depends on in addition to text and context.

    branches_at_once: number of branches computed in one pass; further passes follow in turn. store: where hidden states
    wait until they are used. fps: frame rate of the video, for models that are conditioned on it. guidance: guidance
    scale, for distilled models that take it as an input. reuse_depth: number of levels that run in every step while the
    features below them are reused; None without reuse.
    """

    branches_at_once: int
    store: Store
    fps: float
    guidance: float
    reuse_depth: int | None = None


class NetworkCall(Protocol):
    """Predicts the latent frames of one rank, for all guidance branches that the rank computes.

    network: the module; its weights determine the device, and `dtype`, the type of the arithmetic. middle: the
    submodule at whose start the most hidden states wait in the store; None if none ever wait.
    """

    @property
    def network(self) -> nn.Module: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def middle(self) -> nn.Module | None: ...

    def __call__(self, x: Tensor, t: float, *, renew: bool = True) -> Tensor:
        """Return the predictions (b, c, f, h, w) for latents x (1, c, f, h, w) at training timestep t.

        renew: run the whole network and store its deep features, rather than reuse the stored ones. Raises RankError
        if another rank does not answer.
        """
        ...

    def non_finite_layers(self, x: Tensor, t: float, *, renew: bool = True) -> Sequence[str]:
        """List the layers whose output is NaN or infinite in this call, in order of execution."""
        ...
