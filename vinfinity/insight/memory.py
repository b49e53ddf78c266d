"""What a UNet call holds at most, traced on tensors without data: the real layers run, so the figure cannot drift."""

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vinfinity.models.unet import UNet, UNetConfig
from vinfinity.parallel.context import Scopes, temporal_context
from vinfinity.parallel.exchange import TracedExchange
from vinfinity.parallel.shards import FrameShards


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, until they are freed.

    now: bytes alive. peak: the most that were. Views share their tensor's memory and count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._views: dict[int, int] = {}  # live tensors of each storage

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf)
        return out

    def _watch(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._views:
            self._views[key] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._views[key] += 1
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._views[key] -= 1
        if self._views[key] == 0:
            del self._views[key]
            self.now -= size


@dataclass(frozen=True)
class Footprint:
    """Bytes that one rank holds at most during a UNet call. frames: its own. working: all but the weights."""

    ranks: int
    frames: int
    branches: int
    weights: int
    working: int


def trace_footprint(
    config: UNetConfig,
    *,
    ranks: int,
    frames: int,
    latent: tuple[int, int],
    scopes: Scopes | None,
    branches: int = 1,
    dtype: torch.dtype = torch.float16,
) -> Footprint:
    """Runs one UNet call of an inner rank on meta tensors. frames: per rank. latent: (h, w). branches: at once."""
    shards = FrameShards(frames * ranks, ranks)
    rank = ranks // 2
    with torch.device("meta"):
        unet = UNet(config).to(dtype)
        x = torch.empty(branches, config.in_channels, frames, *latent, dtype=dtype)
        text = torch.empty(branches, 77, config.cross_attention_dim, dtype=dtype)
        t = torch.empty(1)
        fps = torch.empty(1) if config.fps_cond else None
    context = temporal_context(TracedExchange(rank, shards), shards, rank, scopes, device="meta")
    with torch.inference_mode(), LiveBytes() as live:
        unet(x, t, text, context, fps=fps)
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    return Footprint(ranks=ranks, frames=frames, branches=branches, weights=weights, working=live.peak)


def footprint_table(footprints: Sequence[Footprint]) -> list[tuple[str, ...]]:
    """Rows for people; the slope is that from the row before."""
    rows: list[tuple[str, ...]] = [("ranks x frames", "weights", "working", "together", "per further frame")]
    for i, one in enumerate(footprints):
        slope = ""
        if i and one.frames != footprints[i - 1].frames:
            before = footprints[i - 1]
            slope = f"{(one.working - before.working) / (one.frames - before.frames) / 1e6:.2f} MB"
        sizes = (one.weights, one.working, one.weights + one.working)
        rows.append((f"{one.ranks} x {one.frames}", *(f"{size / 1e9:.2f} GB" for size in sizes), slope))
    return rows


def write_json(path: Path, footprints: Sequence[Footprint]) -> None:
    """The figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in footprints], indent=2) + "\n", encoding="utf-8")
