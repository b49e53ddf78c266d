"""Functions that tests run on ranks. Each rank is a process, so this module imports nothing from the tests."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vinfinity.models.frame_text import FrameText
from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.models.unet3d.unet import UNet
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.system.precision import fp32_products


@dataclass(frozen=True)
class Case:
    """One UNet call on a whole video: x (b, 4, f, h, w), text (b, t, c), scopes None for plain attention."""

    config: UNetConfig
    weights: Mapping[str, Tensor]
    x: Tensor
    text: Tensor
    scopes: Scopes | None
    norm: Literal["video", "rank"] = "video"


def call_unets(cases: list[Case], ranks: Ranks) -> list[Tensor]:
    """Return the predictions for all frames, on the CPU."""
    torch.set_num_threads(1)
    outputs = []
    for case in cases:
        with torch.device("meta"):
            unet: nn.Module = UNet(case.config)
        unet.load_state_dict(case.weights, assign=True)
        unet.to(ranks.device)
        shards = FrameShards(case.x.shape[2], ranks.size)
        own = shards.held(ranks.rank)
        ctx = temporal_context(
            ranks.team(shards.frames, split=False).exchange(),
            shards,
            ranks.rank,
            case.scopes,
            norm=case.norm,
            device=ranks.device,
        )
        x, text = (y.to(ranks.device) for y in (case.x[:, :, own.start : own.stop], case.text))
        with torch.inference_mode(), fp32_products(tf32=False):
            prediction = unet(x, torch.full((1,), 500.0, device=ranks.device), FrameText.same(text), ctx)
        # a tensor of a GPU would arrive on the sender's
        outputs.append(torch.cat(ranks.all_gather(prediction.cpu()), dim=2))
    return outputs


def differ(_: None, ranks: Ranks) -> None:
    """Rank 1 has different weights."""
    ranks.agree({"settings": "the same", "weights": "different" if ranks.rank == 1 else "usual"})


def crash(_: None, ranks: Ranks) -> None:
    """Rank 1 raises an unexpected exception while the others wait for it."""
    if ranks.rank == 1:
        raise KeyError("missing")
    ranks.all_gather(1)


def die(number: int, ranks: Ranks) -> None:
    """Rank 1 gets a signal while the others wait for it."""
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.Signals(number))
    time.sleep(0.5)
    ranks.all_gather(1)


def exhaust_memory(_: None, ranks: Ranks) -> None:
    """Rank 1 asks for more memory of its device than there is, while the others wait for it."""
    if ranks.rank == 1:
        if ranks.device.type == "cuda":
            torch.empty(2**50, device=ranks.device)
        # CPUs have an error of their own
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")
    ranks.all_gather(1)
