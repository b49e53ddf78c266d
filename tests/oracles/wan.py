"""Oracles for Wan: tiny models of diffusers, and dual-scope attention over latent frames by its definition.

The definition is written to be read and does not use the plans of vinfinity/parallel.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from oracles.reference import fill
from oracles.wan_autoencoder import tiny_wan_vae
from oracles.wan_text import save_tiny_tokenizer, tiny_umt5
from torch import Tensor
from transformers import T5TokenizerFast

from vinfinity.models.wan.configs import TransformerConfig
from vinfinity.models.wan.transformer import Transformer

TRAINED = 21


@dataclass(frozen=True)
class DenseJoint:
    """Dual scope per latent frame. local, anchors: frames on either side, and number of anchors. grouped: whether
    distances beyond the local scope are grouped. shift: frames by which anchors have moved.
    """

    local: int = 4
    anchors: int = 12
    local_bias: float = 0.0
    anchor_bias: float = 0.0
    grouped: bool = False
    shift: int = 0
    loop: bool = False
    trained: int = TRAINED
    entropy: bool = False


def dense_tables(frames: int, scopes: DenseJoint) -> tuple[Tensor, Tensor]:
    """For each pair of frames (query, key): the bias, -inf where the query does not attend to the key, and the distance
    in time at which it sees the key. (F, F) each.
    """
    count = min(scopes.anchors, frames)
    anchors = {(math.floor((2 * k + 1) * frames / (2 * count)) + scopes.shift) % frames for k in range(count)}
    if scopes.anchor_bias == -math.inf:
        anchors = set()
    bias = torch.full((frames, frames), -math.inf)
    distances = torch.zeros(frames, frames, dtype=torch.int64)
    for i in range(frames):
        # a frame of a loop is seen at the shorter of its two distances
        away = {
            j: min((j - i + lap * frames for lap in (-1, 0, 1)), key=lambda d: (abs(d), d))
            if scopes.loop
            else j - i
            for j in range(frames)
        }
        attended, near = 2 * scopes.local + 1 + len(anchors), list[int]()
        for j in sorted(away, key=lambda j: (abs(away[j]), away[j])):
            if len({*near} | anchors) < attended and scopes.local_bias > -math.inf:
                near.append(j)
        for j, distance in away.items():
            if j in near:
                bias[i, j] = scopes.local_bias
            if j in anchors:
                bias[i, j] = max(scopes.anchor_bias, float(bias[i, j]))
            if scopes.grouped and j not in near:
                side = [abs(away[k]) for k in near if away[k] * distance > 0]
                reach, farthest = max(side, default=0), frames // 2 if scopes.loop else frames - 1
                share = min(1.0, (scopes.trained - 1 - reach) / (farthest - reach))
                distance = int(
                    math.copysign(reach + math.ceil((abs(distance) - reach) * share - 1e-9), distance)
                )
            distances[i, j] = distance
    return bias, distances


class DenseProcessor:
    """A processor of diffusers' self-attention: every query frame against all frames of the video, with a mask."""

    def __init__(
        self, bias: Tensor, distances: Tensor, *, height: int, width: int, entropy: int | None
    ) -> None:
        self.bias, self.distances, self.size, self.entropy = bias, distances, (height, width), entropy

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """hidden_states: (b, frames * tokens, c)."""
        tokens, frames = self.size[0] * self.size[1], len(self.bias)
        q, k, v = (
            attn.norm_q(attn.to_q(hidden_states)),
            attn.norm_k(attn.to_k(hidden_states)),
            attn.to_v(hidden_states),
        )
        q, k, v = (
            x.unflatten(1, (frames, tokens)).unflatten(-1, (attn.heads, -1)).permute(0, 3, 1, 2, 4)
            for x in (q, k, v)
        )
        out = torch.empty_like(q)
        for i in range(frames):
            zero = torch.zeros(1, dtype=torch.int64)
            query = rotate_all(q[:, :, i : i + 1], zero, self.size)
            keys = rotate_all(k, self.distances[i], self.size).flatten(2, 3)
            logits = query[:, :, 0] @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
            logits = logits + self.bias[i].repeat_interleave(tokens)
            if self.entropy is not None:
                seen = int((self.bias[i] > -math.inf).sum())
                logits = logits * math.log(seen * tokens) / math.log(self.entropy * tokens)
            out[:, :, i] = logits.softmax(-1) @ v.flatten(2, 3)
        out = out.permute(0, 2, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        return attn.to_out[0](out)


def rotate_all(x: Tensor, times: Tensor, size: tuple[int, int]) -> Tensor:
    """3-D rotary positions, pair by pair. x: (b, heads, f, p, d). times: (f,)."""
    d = x.shape[-1]
    side = 2 * (d // 6)
    height, width = size
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    angles = []
    for positions, channels in (
        (times[:, None].expand(-1, height * width), d - 2 * side),
        (rows.expand(len(times), -1), side),
        (columns.expand(len(times), -1), side),
    ):
        for pair in range(channels // 2):
            angles.append(positions.double() / 10000 ** (2 * pair / channels))
    turn = torch.polar(torch.ones(()).double(), torch.stack(angles, dim=-1))
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def make_dense_joint(
    reference: WanTransformer3DModel, frames: int, scopes: DenseJoint, *, height: int, width: int
) -> None:
    """Give all self-attentions of a diffusers transformer the dense definition. height, width: in tokens."""
    bias, distances = dense_tables(frames, scopes)
    entropy = scopes.trained if scopes.entropy else None
    for block in reference.blocks:
        block.attn1.set_processor(
            DenseProcessor(bias, distances, height=height, width=width, entropy=entropy)
        )


def tiny_transformer(**changes: Any) -> WanTransformer3DModel:
    """Return a diffusers transformer of two blocks and two heads."""
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
    }
    return fill(WanTransformer3DModel(**{**config, **changes}))


def our_transformer(reference: WanTransformer3DModel) -> Transformer:
    """Our transformer with the configuration and tensors of diffusers' own; names and shapes must be the same."""
    with torch.device("meta"):
        transformer = Transformer(TransformerConfig.from_dict(dict(reference.config)))
    transformer.load_state_dict(reference.state_dict(), assign=True)
    return transformer.eval().requires_grad_(False)


# ---- whole models ----


def tiny_wan_pipeline(tokenizer: Path, scheduler: Any = None, **transformer: Any) -> WanPipeline:
    """Return a whole text-to-video pipeline of diffusers. tokenizer: its folder."""
    flow = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanPipeline(
        tokenizer=T5TokenizerFast.from_pretrained(tokenizer),
        text_encoder=tiny_umt5(),
        vae=tiny_wan_vae(),
        transformer=tiny_transformer(**{"in_channels": 4, "out_channels": 4, **transformer}),
        scheduler=scheduler or flow,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_wan(folder: Path, **transformer: Any) -> Path:
    """Write a tiny random model as diffusers does. Returns its folder."""
    tiny_wan_pipeline(
        save_tiny_tokenizer(folder.parent / f"{folder.name}-tokenizer"), **transformer
    ).save_pretrained(folder)
    return folder
