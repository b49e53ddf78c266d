"""How the rest of the program calls a denoising network, whichever family it belongs to.

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
    """What a call depends on besides text and context.

    branches_at_once: branches computed in one pass; the others follow one after the other. store: where hidden states
    wait until they are used. fps: frame rate of the video, for models that are conditioned on it. guidance: its weight,
    for distilled models that take it as an input. reuse_depth: levels that run in every step while the features below
    them are reused; None without reuse.
    """

    branches_at_once: int
    store: Store
    fps: float
    guidance: float
    reuse_depth: int | None = None


class NetworkCall(Protocol):
    """The network's predictions for the latent frames of one rank, for all guidance branches that the rank computes.

    network: its weights decide the device and the type of the arithmetic, `dtype`. middle: the submodule at whose start
    the most hidden states wait in the store; None if none ever wait.
    """

    @property
    def network(self) -> nn.Module: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def middle(self) -> nn.Module | None: ...

    def __call__(self, x: Tensor, t: float, *, renew: bool = True) -> Tensor:
        """The predictions (b, c, f, h, w) for latents x (1, c, f, h, w) at training timestep t.

        renew: run the whole network and store its deep features, rather than reuse the stored ones. Raises RankError
        if another rank does not answer.
        """
        ...

    def non_finite_layers(self, x: Tensor, t: float, *, renew: bool = True) -> Sequence[str]:
        """The layers whose output is NaN or infinite in this call, in order of execution."""
        ...
