"""The shapes of a run, from its settings and its model's card: enough to plan it without weights, prompt or files."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from vinfinity.config import Phase, RunConfig
from vinfinity.denoise.execution import Execution, ladder
from vinfinity.denoise.guidance import guidance_branches
from vinfinity.denoise.samplers import Sampler, pick_sampler
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.denoise.scopes import scopes_of
from vinfinity.errors import WeightsError
from vinfinity.media.blocks import Blocks, plan_blocks
from vinfinity.models.decoder import Decoder
from vinfinity.models.unet3d.configs import TextConfig, UNetConfig, VAEConfig
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.parallel.scopes import NEVER
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.teams import team_of
from vinfinity.planning.trace import CallShape
from vinfinity.weights.card import ModelCard
from vinfinity.weights.dtypes import DTYPES
from vinfinity.weights.load import drop_encoder, empty_decoder

DeviceType = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Outline:
    """The shapes of a run.

    frames: those that are denoised, fewer than `config.frames` in an edit.
    device: what ranks compute on. branches: guidance branches of a step. latent: (c, h, w) of one frame.
    """

    config: RunConfig
    card: ModelCard
    frames: int
    device: DeviceType
    ranks: int
    unet: UNetConfig
    decoder: Decoder
    text: TextConfig
    sampler: Sampler
    branches: int
    latent: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the video in pixels."""
        return self.config.resolution

    @property
    def split_branches(self) -> bool:
        """Whether half of the ranks compute each guidance branch."""
        return self.config.parallel.split_guidance and self.branches == 2 and self.ranks > 1

    @property
    def shards(self) -> FrameShards:
        """The frames over the ranks that share them; of two teams, over the smaller one."""
        return FrameShards(self.frames, self.ranks // 2 if self.split_branches else self.ranks)

    @property
    def branches_per_rank(self) -> int:
        """Guidance branches that each rank computes."""
        return 1 if self.split_branches else self.branches

    @property
    def frames_per_rank(self) -> list[int]:
        """Frames of each rank."""
        split = self.split_branches
        teams = (team_of(rank, self.ranks, frames=self.frames, split=split) for rank in range(self.ranks))
        return [len(team.held) for team in teams]

    @property
    def call(self) -> CallShape:
        """The UNet call of the fullest rank, and of several such ranks the middle one, which exchanges the most."""
        config, shards = self.config, self.shards
        middle = shards.ranks // 2
        rank = max(range(shards.ranks), key=lambda r: (len(shards.held(r)), -abs(r - middle)))
        attention = config.attention
        scopes = None
        if config.frames > attention.trained_frames:
            phase = max(attention.schedule, key=_active_scopes)
            scopes = scopes_of(attention, phase, attention.anchors)
        return CallShape(
            unet=self.unet,
            shards=shards,
            rank=rank,
            latent=self.latent[1:],
            scopes=scopes,
            dtype=DTYPES[self.dtype],
            norm=attention.norm,
            trained_frames=attention.trained_frames,
            text_tokens=self.card.text_length,
            reuse_depth=config.reuse.depth if config.reuse.interval > 1 else None,
        )

    @property
    def dtype(self) -> str:
        """The type of the UNet's weights and arithmetic."""
        return (
            {"cuda": "fp16", "cpu": "fp32"}[self.device] if self.config.dtype == "auto" else self.config.dtype
        )

    @property
    def executions(self) -> list[Execution]:
        """The executions that the settings allow, from the fastest to the leanest."""
        most = max(self.frames_per_rank)
        return ladder(self.config, branches=self.branches_per_rank, frames=most, device=self.device)

    @property
    def blocks(self) -> Blocks:
        """The blocks in which the video is decoded."""
        blocks = plan_blocks(self.config.decode, self.decoder.config, self.latent[1:])
        return replace(blocks, frames=min(blocks.frames, self.config.frames))

    def with_changes(
        self, *, ranks: int | None = None, frames: int | None = None, **settings: Any
    ) -> "Outline":
        """The outline of the same run with other ranks, frames or settings."""
        if frames is not None:
            settings["frames"] = frames
        return outline(
            replace(self.config, **settings),
            self.card,
            device=self.device,
            ranks=ranks or self.ranks,
            frames=frames or self.frames,
        )


def outline(
    config: RunConfig, card: ModelCard, *, device: DeviceType, ranks: int, frames: int | None = None
) -> Outline:
    """The outline of a run. frames: those that are denoised, None for all of the video.

    Raises InputError if sampler and steps do not go together, or if the model's architecture is not supported.
    """
    try:
        scheduler = SchedulerConfig.from_dict(card.schedule)
    except (ValueError, TypeError) as error:
        remedy = "use a model with a supported architecture"
        raise WeightsError("model", card.folder / "scheduler", remedy, problem=f"{error}") from None
    if config.decoder is not None:
        decoder = empty_decoder(Path(config.decoder))
    else:
        decoder = _empty_autoencoder(card.config(VAEConfig))
    return Outline(
        config=config,
        card=card,
        frames=config.frames if frames is None else frames,
        device=device,
        ranks=ranks,
        unet=card.config(UNetConfig),
        decoder=decoder,
        text=card.config(TextConfig),
        sampler=pick_sampler(config, scheduler),
        branches=guidance_branches(config.guidance, distilled=card.guidance_width is not None),
        latent=card.geometry.latent_size(config.resolution),
    )


@cache
def _empty_autoencoder(vae: VAEConfig) -> Decoder:
    """The decoding half of a model's own autoencoder, on meta tensors."""
    with torch.device("meta"):
        decoder = AutoencoderKL(vae)
    drop_encoder(decoder)
    return decoder


def _active_scopes(phase: Phase) -> int:
    """How many of the two scopes are on."""
    return (phase.local > NEVER) + (phase.anchors > NEVER)
