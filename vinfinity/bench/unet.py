"""How long a UNet call takes, by precision and compiled."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.bench.timing import Times, time_in_turn
from vinfinity.config import parse_size
from vinfinity.denoise.execution import MIB
from vinfinity.job import DTYPES
from vinfinity.models.unet3d.layers import channels_last
from vinfinity.models.unet3d.unet import UNet, UNetConfig, compile_blocks
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.teams import Team, team_of
from vinfinity.weights.card import read_card
from vinfinity.weights.load import load_unet

MEDIUM = UNetConfig(block_out_channels=(160, 320, 640, 640), attention_head_dim=32, cross_attention_dim=512)
STRETCHES = {"cpu": 4 * MIB, "cuda": 256 * MIB}


@dataclass(frozen=True)
class Shape:
    """A UNet call with both guidance branches. latent: (h, w). tokens: of the text."""

    name: str
    frames: int
    latent: tuple[int, int]
    tokens: int
    build: Callable[[torch.dtype, str], UNet]

    @property
    def title(self) -> str:
        return f"{self.name}, {self.frames} frames of {self.latent[1]}x{self.latent[0]}"


def shape_of(model: str, *, frames: int, size: tuple[int, int] | None = None) -> Shape:
    """The UNet of a model, or `medium`: 353 M parameters with random weights, for which none are needed."""
    if model == "medium":
        width, height = size or (256, 160)

        def build(dtype: torch.dtype, device: str) -> UNet:
            torch.manual_seed(0)
            unet = UNet(MEDIUM).to(device, dtype).eval().requires_grad_(False)
            for parameter in unet.parameters():
                parameter.data = channels_last(parameter.data)
            return unet

        return Shape("353 M parameters", frames, (height // 8, width // 8), 77, build)
    card = read_card(model)
    width, height = size or parse_size(str(card.defaults["size"]))
    latent = (-(-height // card.pixels), -(-width // card.pixels))
    return Shape(
        card.name,
        frames,
        latent,
        card.text_length,
        lambda dtype, device: load_unet(card.folder / "unet", device=device, dtype=dtype),
    )


def inputs(
    shape: Shape, config: UNetConfig, *, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """x (2, 4, f, h, w), t (1,) and text (2, tokens, c) of a call, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, config.in_channels, shape.frames, *shape.latent, generator=generator)
    text = torch.randn(2, shape.tokens, config.cross_attention_dim, generator=generator)
    return x.to(device, dtype), torch.full((1,), 500.0, device=device), text.to(device, dtype)


def our_call(
    shape: Shape,
    unet: UNet,
    *,
    dtype: torch.dtype,
    device: str,
    scopes: Scopes | None = None,
    team: Team | None = None,
    exchange: FrameExchange | None = None,
) -> Callable[[], Tensor]:
    """One call, as a run makes it. scopes: None for plain attention over all frames, as the base model has it.

    team: the ranks that share the video, of which `shape` has this one's frames; none for a rank that holds it all.
    exchange: another than the team's own.
    """
    team = team or team_of(0, 1, frames=shape.frames, split=False)
    x, t, text = inputs(shape, unet.config, dtype=dtype, device=device)
    fps = torch.full((1,), 8.0, device=device) if unet.config.fps_cond else None
    context = temporal_context(
        exchange or team.exchange(),
        team.shards,
        team.member,
        scopes,
        chunk_bytes=STRETCHES[torch.device(device).type],
        device=device,
    )

    def call() -> Tensor:
        with torch.inference_mode():
            return unet(x, t, text, context, fps=fps)

    return call


def time_unet(shape: Shape, *, dtypes: Sequence[str], compiled: bool, rounds: int, device: str) -> Times:
    """Calls in each precision, in turn; `compiled` adds those of a compiled UNet."""
    calls: dict[str, Callable[[], Tensor]] = {}
    for name in dtypes:
        dtype = DTYPES[name]
        calls[name] = our_call(shape, shape.build(dtype, device), dtype=dtype, device=device)
        if compiled:
            unet = shape.build(dtype, device)
            compile_blocks(unet)
            calls[f"{name} compiled"] = our_call(shape, unet, dtype=dtype, device=device)
    return time_in_turn(calls, rounds=rounds)


def times_table(measured: Sequence[tuple[Shape, Times]]) -> list[tuple[str, ...]]:
    """Rows for people; each way's ratio is to the first."""
    rows: list[tuple[str, ...]] = [("UNet call", "seconds", "ratio")]
    for shape, times in measured:
        first = next(iter(times.seconds))
        for name in times.seconds:
            ratio = "" if name == first else times.ratio(name, first)
            rows.append((f"{shape.title}, {name}", f"{times.median(name):.3f}", ratio))
    return rows


def write_json(path: Path, measured: Sequence[tuple[Shape, Times]]) -> None:
    """The figures as JSON."""
    figures = [{"shape": shape.title, "seconds": dict(times.seconds)} for shape, times in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
