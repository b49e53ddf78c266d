"""Oracles: dense definitions of dual-scope attention, and tiny models of diffusers and transformers.

The definitions are written to be read and do not use the plans of vinfinity/parallel: scopes, anchors and biases are
computed independently.
"""

import math
import queue
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vinfinity.config import Resolved, load
from vinfinity.media.blocks import Blocks
from vinfinity.media.decode import decode_frames
from vinfinity.media.latents import TensorLatents
from vinfinity.parallel.exchange import Counters, Done, Fetched, Pending
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards, Route
from vinfinity.weights.card import EMBEDDED, model_defaults
from vinfinity.weights.load import load_decoder

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
MINI_TOKENIZER = EMBEDDED / "mini" / "tokenizer"
# Seconds after which a simulated rank counts as lost.
ANSWER_WITHIN = 60.0


# ---- dual-scope attention by its definition ----


@dataclass(frozen=True)
class DenseScopes:
    """Dual-scope attention (paper, section 3.3). trained_frames: for entropy scaling; None: no entropy scaling."""

    local: int
    anchors: int
    local_bias: float
    anchor_bias: float
    trained_frames: int | None = None


def dense_bias(frames: int, scopes: DenseScopes | None) -> tuple[Tensor, Tensor]:
    """Return the bias b(i, j), (F, F), -inf where i does not attend to j, and the entropy scale of each query, (F,)."""
    if scopes is None:
        return torch.zeros(frames, frames), torch.ones(frames)
    count = min(scopes.anchors, frames)
    anchors = {math.floor((2 * k + 1) * frames / (2 * count)) for k in range(count)}
    bias: list[list[float]] = []
    scale: list[float] = []
    for i in range(frames):
        row = []
        for j in range(frames):
            near = scopes.local_bias if abs(i - j) <= scopes.local else -math.inf
            anchored = scopes.anchor_bias if j in anchors else -math.inf
            row.append(max(near, anchored))
        attended = sum(b > -math.inf for b in row)
        trained = scopes.trained_frames
        scale.append(1.0 if trained is None else math.log(attended) / math.log(trained))
        bias.append(row)
    return torch.tensor(bias), torch.tensor(scale)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """One softmax over all frames. q, k, v: (..., F, d); bias: (F, F); scale: (F,)."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    seen = bias > -math.inf
    logits = (logits + torch.where(seen, bias, 0.0)) * scale[:, None]
    return torch.where(seen, logits, -math.inf).softmax(-1) @ v


# ---- a dense UNet ----


class DenseDualScope:
    """A diffusers attention processor: dual-scope attention over all frames of the video at once."""

    def __init__(self, bias: Tensor, scale: Tensor) -> None:
        self.bias, self.scale = bias, scale

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """hidden_states: (positions, F, c)."""
        assert encoder_hidden_states is None
        q, k, v = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = dense_attention(q, k, v, self.bias, self.scale)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def make_dense(unet: UNet3DConditionModel, frames: int, scopes: DenseScopes | None) -> int:
    """Give all temporal attentions of a diffusers UNet the dense mask. Returns their number."""
    processor = DenseDualScope(*dense_bias(frames, scopes))
    temporal = [
        name for name in unet.attn_processors if "transformer_in." in name or "temp_attentions." in name
    ]
    unet.set_attn_processor({**unet.attn_processors, **dict.fromkeys(temporal, processor)})
    return len(temporal)


# ---- ranks without processes ----


class ThreadExchange:
    """A FrameExchange between threads: ranks receive only what others send by their routes."""

    def __init__(
        self, shards: FrameShards, rank: int, boxes: dict[tuple[int, int], queue.Queue[Any]]
    ) -> None:
        self.shards, self.rank, self.boxes = shards, rank, boxes
        self.counters = Counters()

    def fetch(self, x: Tensor, route: Route, *, sums: Tensor | None = None, label: str = "") -> Pending:
        ranks = range(self.shards.ranks)
        sends = dict(route.sends)
        for peer in ranks:
            if peer != self.rank:
                frames = x[:, list(sends[peer])] if peer in sends else None
                self.boxes[self.rank, peer].put((label, frames, sums))
        return _Waiting(self, x, route, sums, label)


@dataclass
class _Waiting:
    exchange: ThreadExchange
    x: Tensor
    route: Route
    sums: Tensor | None
    label: str
    fetched: Fetched | None = None

    def wait(self) -> Fetched:
        if self.fetched is None:
            self.fetched = self._receive()
        return self.fetched

    def _receive(self) -> Fetched:
        exchange, shards, rank = self.exchange, self.exchange.shards, self.exchange.rank
        parts: dict[int, Tensor] = {}
        statistics: list[Tensor | None] = []
        for peer in range(shards.ranks):
            if peer == rank:
                statistics.append(self.sums)
                continue
            label, frames, sums = exchange.boxes[peer, rank].get(timeout=ANSWER_WITHIN)
            assert label == self.label
            statistics.append(sums)
            if frames is not None:
                parts[peer] = frames
        assert sorted(parts) == [peer for peer, _, _ in self.route.receives]
        for peer, start, stop in self.route.receives:
            assert parts[peer].shape[1] == stop - start
        arrived = [parts[peer] for peer, _, _ in self.route.receives]
        frames = torch.cat(arrived, dim=1) if arrived else self.x[:, :0]
        combined = None
        if self.sums is not None:
            combined = torch.stack([m for m in statistics if m is not None]).sum(0)
        return Done(Fetched(frames=frames, sums=combined)).wait()


def on_ranks(shards: FrameShards, work: Callable[[int, ThreadExchange], T]) -> list[T]:
    """Run `work(rank, exchange)` for all ranks at once, each in a thread, without gradients."""
    ranks = range(shards.ranks)
    boxes: dict[tuple[int, int], queue.Queue[Any]] = {(p, q): queue.Queue() for p in ranks for q in ranks}

    def one(rank: int) -> T:
        with torch.no_grad():
            return work(rank, ThreadExchange(shards, rank, boxes))

    with ThreadPoolExecutor(max_workers=shards.ranks) as pool:
        results = list(pool.map(one, ranks))
    assert all(box.empty() for box in boxes.values())
    return results


# ---- tiny models without zeros in their weights ----


def fill(module: M, *, seed: int = 0) -> M:
    """Fill every parameter with noise that keeps activations near 1, and set evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = noise / parameter[0].numel() ** 0.5
        else:
            parameter.data = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval().requires_grad_(False)


def tiny_unet(**changes: Any) -> UNet3DConditionModel:
    """Return a diffusers UNet of two levels, attention in the first."""
    config = {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "sample_size": 4,
    }
    return fill(UNet3DConditionModel(**{**config, **changes}))


def tiny_vae(**changes: Any) -> AutoencoderKL:
    """Return a diffusers autoencoder with 8 pixels per latent position, as in the large ones."""
    widths = changes.get("block_out_channels", (8, 8, 16, 16))
    config = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return fill(AutoencoderKL(**{**config, **changes}))


def tiny_text_encoder(**changes: Any) -> CLIPTextModel:
    """Return a CLIP text encoder for the embedded model's tokenizer."""
    config = {
        "vocab_size": 678,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "hidden_act": "quick_gelu",
        "bos_token_id": 676,
        "eos_token_id": 677,
        "pad_token_id": 677,
    }
    return fill(CLIPTextModel(CLIPTextConfig(**{**config, **changes})))


def tiny_pipeline(scheduler: Any = None, **unet: Any) -> TextToVideoSDPipeline:
    """Return a whole text-to-video pipeline of diffusers."""
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    pipeline = TextToVideoSDPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=CLIPTokenizer.from_pretrained(MINI_TOKENIZER),
        unet=tiny_unet(**unet),
        scheduler=scheduler or DDIMScheduler(**schedule, clip_sample=False, steps_offset=1),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_model(folder: Path, pipeline: TextToVideoSDPipeline | None = None) -> Path:
    """Write a model as diffusers does. Returns its folder."""
    (pipeline or tiny_pipeline()).save_pretrained(folder)
    return folder


def copy_model(source: Path, target: Path) -> Path:
    """Return a copy of a model's folder that a test may change."""
    return Path(shutil.copytree(source, target))


def configure(model: Path | str, *overrides: str, **flags: Any) -> Resolved:
    """Return a complete configuration for a model, as the command line builds it."""
    given = {"model": str(model), "prompt": "a red ball", "frames": 3, "size": "32x32", "steps": 2, **flags}
    return load(None, overrides=overrides, flags=given, card=model_defaults)


def decoded(model: Path, latents: Tensor, *, size: tuple[int, int], block: int = 2) -> np.ndarray:
    """Latents (1, c, f, h, w) decoded by a model's autoencoder: (f, height, width, 3) uint8."""
    _, c, frames, h, w = latents.shape
    decoder = load_decoder(model / "vae", device="cpu", dtype=torch.float32)
    pictures = decode_frames(
        decoder,
        TensorLatents(latents),
        frames=range(frames),
        latent=(c, h, w),
        size=size,
        blocks=Blocks(frames=block, tile=None, bytes=0),
        ranks=Ranks(device=torch.device("cpu")),
    )
    return np.stack(list(pictures))


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference over the largest value."""
    assert ours.shape == reference.shape, f"{tuple(ours.shape)} is not {tuple(reference.shape)}"
    assert reference.std() > 1e-3, "the reference is nearly constant"
    return ((ours - reference).abs().max() / reference.abs().max()).item()
