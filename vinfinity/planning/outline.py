"""A run by its shapes: all that its plan follows from, without weights, prompt or files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from vinfinity.config import Phase, RunConfig
from vinfinity.denoise.execution import Execution, ladder
from vinfinity.denoise.samplers import Sampler
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.errors import WeightsError
from vinfinity.job import DTYPES, branches, latent_shape, pick_sampler
from vinfinity.media.blocks import Blocks, plan_blocks
from vinfinity.models.unet3d.clip import TextConfig
from vinfinity.models.unet3d.taesd import LatentDecoder
from vinfinity.models.unet3d.unet import UNetConfig
from vinfinity.models.unet3d.vae import AutoencoderKL, VAEConfig
from vinfinity.parallel.scopes import NEVER, Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.teams import team_of
from vinfinity.planning.trace import Clip
from vinfinity.weights.card import ModelCard
from vinfinity.weights.load import drop_encoder, empty_decoder

DeviceType = Literal["cuda", "cpu"]
Built = TypeVar("Built")


@dataclass(frozen=True)
class Outline:
    """config: completed from the model's card. device: what ranks compute on. branches: guidance branches of a step.
    latent: (c, h, w) of one frame.
    """

    config: RunConfig
    card: ModelCard
    device: DeviceType
    ranks: int
    unet: UNetConfig
    decoder: LatentDecoder
    text: TextConfig
    sampler: Sampler
    branches: int
    latent: tuple[int, int, int]

    @property
    def split_branches(self) -> bool:
        """Whether half of the ranks take each guidance branch."""
        return self.config.parallel.split_guidance and self.branches == 2 and self.ranks > 1

    @property
    def shards(self) -> FrameShards:
        """The video over the ranks that share it, those of the smaller team where there are two."""
        return FrameShards(self.config.frames, self.ranks // 2 if self.split_branches else self.ranks)

    @property
    def rank_branches(self) -> int:
        """Guidance branches that each rank takes."""
        return 1 if self.split_branches else self.branches

    @property
    def held(self) -> list[int]:
        """Frames of each rank."""
        frames, split = self.config.frames, self.split_branches
        return [len(team_of(rank, self.ranks, frames=frames, split=split).held) for rank in range(self.ranks)]

    @property
    def clip(self) -> Clip:
        """The UNet call of the fullest rank; of several, of the one in the middle, which exchanges the most."""
        config, shards = self.config, self.shards
        middle = shards.ranks // 2
        rank = max(range(shards.ranks), key=lambda r: (len(shards.held(r)), -abs(r - middle)))
        attention = config.attention
        scopes = None
        if config.frames > attention.trained_frames:
            phase = max(attention.schedule, key=_scopes_on)
            scopes = Scopes(
                local=attention.local,
                anchors=attention.anchors,
                local_bias=phase.local,
                anchor_bias=phase.anchors,
                entropy_scaling=attention.entropy_scaling,
            )
        return Clip(
            unet=self.unet,
            shards=shards,
            rank=rank,
            latent=self.latent[1:],
            scopes=scopes,
            dtype=DTYPES[self.dtype],
            norm=attention.norm,
            trained_frames=attention.trained_frames,
            text=self.card.text_length,
            reuse=config.reuse.depth if config.reuse.interval > 1 else None,
        )

    @property
    def dtype(self) -> str:
        """Of the UNet's weights and arithmetic."""
        return (
            {"cuda": "fp16", "cpu": "fp32"}[self.device] if self.config.dtype == "auto" else self.config.dtype
        )

    @property
    def executions(self) -> list[Execution]:
        """The ways to carry out UNet calls, from the fastest to the leanest."""
        return ladder(self.config, branches=self.rank_branches, frames=max(self.held), device=self.device)

    @property
    def blocks(self) -> Blocks:
        """How the video is cut for decoding."""
        blocks = plan_blocks(self.config.decode, self.decoder.config, self.latent[1:])
        return replace(blocks, frames=min(blocks.frames, self.config.frames))

    def changed(self, *, ranks: int | None = None, **settings: Any) -> "Outline":
        """The outline of the same run with other ranks or settings."""
        config = replace(self.config, **settings)
        return outline(config, self.card, device=self.device, ranks=ranks or self.ranks)


def outline(config: RunConfig, card: ModelCard, *, device: DeviceType, ranks: int) -> Outline:
    """Raises InputError where sampler and steps do not go together, or the model is of a kind that is not supported."""

    def built(part: str, build: Callable[[Mapping[str, Any]], Built]) -> Built:
        try:
            return build(card.files[part])
        except (ValueError, TypeError) as error:
            remedy = "use a model of a supported kind"
            raise WeightsError("model", card.folder / part, remedy, problem=f"{error}") from None

    if config.decoder is not None:
        decoder = empty_decoder(Path(config.decoder))
    else:
        decoder = _decoding_half(built("vae", VAEConfig.from_dict))
    return Outline(
        config=config,
        card=card,
        device=device,
        ranks=ranks,
        unet=built("unet", UNetConfig.from_dict),
        decoder=decoder,
        text=built("text_encoder", TextConfig.from_dict),
        sampler=pick_sampler(config, built("scheduler", SchedulerConfig.from_dict)),
        branches=branches(config, card),
        latent=latent_shape(config, card),
    )


@cache
def _decoding_half(vae: VAEConfig) -> LatentDecoder:
    with torch.device("meta"):
        decoder = AutoencoderKL(vae)
    drop_encoder(decoder)
    return decoder


def _scopes_on(phase: Phase) -> int:
    return (phase.local > NEVER) + (phase.anchors > NEVER)
