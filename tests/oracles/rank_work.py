"""The work of the ranks in test_ranks.py, without the imports of the tests: each rank is a process of its own."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.models.unet3d.unet import UNet
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards


@dataclass(frozen=True)
class Case:
    """One UNet call on a whole video: x (b, 4, f, h, w), text (b, t, c), scopes None for plain attention."""

    config: UNetConfig
    weights: Mapping[str, Tensor]
    x: Tensor
    text: Tensor
    scopes: Scopes | None
    norm: str = "video"


def call_unets(cases: list[Case], ranks: Ranks) -> list[Tensor | None]:
    """The predictions for all frames, on rank 0."""
    torch.set_num_threads(1)
    outputs = []
    for case in cases:
        with torch.device("meta"):
            unet: nn.Module = UNet(case.config)
        unet.load_state_dict(case.weights, assign=True)
        unet.to(ranks.device)
        shards = FrameShards(case.x.shape[2], ranks.size)
        held = shards.held(ranks.rank)
        ctx = temporal_context(
            ranks.team(shards.frames, split=False).exchange(),
            shards,
            ranks.rank,
            case.scopes,
            norm=case.norm,  # type: ignore[arg-type]
            device=ranks.device,
        )
        x, text = (y.to(ranks.device) for y in (case.x[:, :, held.start : held.stop], case.text))
        with torch.inference_mode():
            mine = unet(x, torch.full((1,), 500.0, device=ranks.device), text, ctx)
        outputs.append(torch.cat(ranks.collect(mine), dim=2))
    return outputs


def differ(_: None, ranks: Ranks) -> None:
    """Rank 1 has different weights."""
    ranks.agree({"settings": "the same", "weights": "others" if ranks.rank == 1 else "these"})


def crash(_: None, ranks: Ranks) -> None:
    """Rank 1 fails with a bug while the others wait for it."""
    if ranks.rank == 1:
        raise KeyError("no such thing")
    ranks.collect(1)


def die(number: int, ranks: Ranks) -> None:
    """Rank 1 gets a signal while the others wait for it."""
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.Signals(number))
    time.sleep(0.5)
    ranks.collect(1)
