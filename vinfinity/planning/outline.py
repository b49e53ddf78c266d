"""The shapes of a run, from its settings and its model's card: enough to plan it without weights, text or files."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from vinfinity.config import Phase, RunConfig
from vinfinity.denoise.execution import Execution, ladder
from vinfinity.denoise.flows import read_schedule
from vinfinity.denoise.guidance import guidance_branches
from vinfinity.denoise.prompts import schedule_prompts
from vinfinity.denoise.scopes import scopes_of, timeline_of
from vinfinity.denoise.selection import select_all
from vinfinity.denoise.start import pick_sampler, schedule_of
from vinfinity.denoise.state import Sampler
from vinfinity.errors import WeightsError
from vinfinity.media.blocks import Blocks, plan_blocks
from vinfinity.media.encode import block_frames
from vinfinity.media.turns import Turns, plan_turns
from vinfinity.models.decoder import Decoder, Encoder
from vinfinity.models.family import AUTOENCODER, SCHEDULER, Family
from vinfinity.parallel.scopes import NEVER
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.teams import team_of
from vinfinity.parallel.timeline import Timeline
from vinfinity.planning.trace import CallShape
from vinfinity.weights.card import ModelCard
from vinfinity.weights.dtypes import DTYPES, depends_on_shapes
from vinfinity.weights.load import empty_autoencoder, empty_decoder, empty_encoder

DeviceType = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Outline:
    """The shapes of a run.

    denoised_frames: the number of latent frames to denoise, in an edit fewer than the video has. device: the type of
    the ranks' devices. branches: the number of guidance branches in a step. latent_shape: (c, h, w) of a latent frame.
    """

    config: RunConfig
    card: ModelCard
    denoised_frames: int
    device: DeviceType
    ranks: int
    decoder: Decoder
    sampler: Sampler
    branches: int
    latent_shape: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the video in pixels."""
        return self.config.resolution

    @property
    def splits_branches(self) -> bool:
        """Whether each guidance branch is computed by half of the ranks."""
        return self.config.parallel.split_guidance and self.branches == 2 and self.ranks > 1

    @property
    def shards(self) -> FrameShards:
        """How ranks share the latent frames; of two teams, how the smaller one does."""
        ranks = self.ranks // 2 if self.splits_branches else self.ranks
        return FrameShards.of(self.denoised_frames, ranks, grouped=self.grouped)

    @property
    def grouped(self) -> bool:
        """Whether ranks compute whole groups of frames."""
        joint = self.card.traits.denoiser.joint
        return not joint and depends_on_shapes(DTYPES[self.dtype], self.device)

    @property
    def branches_per_rank(self) -> int:
        """The number of guidance branches that each rank computes."""
        return 1 if self.splits_branches else self.branches

    @property
    def frames_per_rank(self) -> list[int]:
        """The number of latent frames of each rank."""
        frames, split, grouped = self.denoised_frames, self.splits_branches, self.grouped
        teams = (
            team_of(rank, self.ranks, frames=frames, split=split, grouped=grouped)
            for rank in range(self.ranks)
        )
        return [len(team.held) for team in teams]

    @property
    def call(self) -> CallShape:
        """The network call of the rank with the most frames; of several, the middle one, which exchanges the most."""
        config, shards = self.config, self.shards
        middle = shards.ranks // 2
        rank = max(range(shards.ranks), key=lambda r: (len(shards.held(r)), -abs(r - middle)))
        attention = config.attention
        scopes = None
        if self.latent_frames > attention.trained_frames:
            phase = max(attention.schedule, key=_active_scopes)
            scopes = scopes_of(attention, phase)
        return CallShape(
            family=self.card.family,
            config=self.card.configs[self.card.family.denoiser],
            shards=shards,
            rank=rank,
            latent_size=self.latent_shape[1:],
            scopes=scopes,
            dtype=DTYPES[self.dtype],
            norm=attention.norm,
            trained_frames=attention.trained_frames,
            text_tokens=self.card.text_length,
            reuse_depth=config.reuse.depth if config.reuse.interval > 1 else None,
            timeline=self._timeline,
            joint=attention.positions if self.card.traits.denoiser.joint else None,
            on_cpu=self.device == "cpu",
        )

    @property
    def _timeline(self) -> Timeline | None:
        """The scenes or the loop of the video; None for one scene, and for edits, which compute a part of the video."""
        prompts = schedule_prompts(self.config, self.card.geometry)
        if prompts.frames != self.denoised_frames or (len(prompts.scenes) == 1 and not self.config.loop):
            return None
        selection = select_all(self.denoised_frames, seed=0)
        return timeline_of(self.config.attention, selection, prompts.scenes, loop=self.config.loop)

    @property
    def dtype(self) -> str:
        """The data type of the denoiser's weights and arithmetic."""
        if self.config.dtype != "auto":
            return self.config.dtype
        return self.card.family.half if self.device == "cuda" else "fp32"

    @property
    def executions(self) -> list[Execution]:
        """The executions that the settings allow, from the fastest to the leanest."""
        frames = self.denoised_frames
        return ladder(self.config, branches=self.branches_per_rank, frames=frames, device=self.device)

    @property
    def blocks(self) -> Blocks:
        """The blocks in which the video is decoded."""
        blocks = plan_blocks(
            self.config.decode,
            self.decoder.config,
            self.latent_shape[1:],
            sample_bytes=self.config.format.sample_bits // 8,
        )
        return replace(blocks, frames=min(blocks.frames, self.latent_frames))

    @property
    def latent_frames(self) -> int:
        """The number of latent frames of the whole video."""
        return self.card.geometry.latent_frames(self.config.frames)

    @property
    def picture_bytes(self) -> int:
        """The bytes of one decoded frame."""
        width, height = self.size
        return width * height * 3 * self.config.format.sample_bits // 8

    @property
    def turns(self) -> Turns:
        """How the ranks share the decoding."""
        ranks = self.ranks if self.config.decode.on_all_ranks(self.device) else 1
        return plan_turns(
            self.decoder, self.latent_frames, self.blocks, ranks=ranks, picture_bytes=self.picture_bytes
        )

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of the source video or the pictures; None for a run without them."""
        if not self.config.encodes:
            return None
        return _own_encoder(self.card.family, self.card.configs[AUTOENCODER])

    @property
    def encoded_block(self) -> int:
        """The number of latent frames in a block that a rank encodes."""
        encoder, config = self.encoder, self.config
        if encoder is None:
            return 0
        frames = self.latent_frames if config.starts_from_video else len(config.input.pictures)
        return min(block_frames(encoder.config, self.latent_shape[1:]), frames)

    @property
    def encoded_at_once(self) -> int:
        """The number of latent frames that an encoder computes at once."""
        causal = self.encoder is not None and self.encoder.config.causal
        return min(1, self.encoded_block) if causal else self.encoded_block

    @property
    def encoding_ranks(self) -> int:
        """The number of ranks that encode."""
        return 1 if self.encoder is not None and self.encoder.config.causal else self.ranks

    def with_changes(
        self, *, ranks: int | None = None, frames: int | None = None, **settings: Any
    ) -> "Outline":
        """Return the outline with another number of ranks or frames, or other settings.

        frames: the length of the video, all of which is denoised.
        """
        if frames is not None:
            # prompts may begin beyond the end of a shorter video; their memory is negligible
            settings |= {"frames": frames, "prompts": ()}
        return outline(
            replace(self.config, **settings),
            self.card,
            device=self.device,
            ranks=ranks or self.ranks,
            denoised_frames=None if frames is not None else self.denoised_frames,
        )


def outline(
    config: RunConfig, card: ModelCard, *, device: DeviceType, ranks: int, denoised_frames: int | None = None
) -> Outline:
    """Return the outline of a run. denoised_frames: the number of latent frames to denoise, None for all.

    Raises InputError if sampler, steps and shift do not go together, WeightsError if the model's schedule is not
    supported.
    """
    try:
        schedule = read_schedule(card.schedule, flow=card.family.flow)
    except (ValueError, TypeError) as error:
        remedy = "use a model with a supported architecture"
        raise WeightsError("model", card.folder / SCHEDULER, remedy, problem=f"{error}") from None
    if config.decoder is not None:
        decoder = empty_decoder(Path(config.decoder))
    else:
        decoder = _own_decoder(card.family, card.configs[AUTOENCODER])
    return Outline(
        config=config,
        card=card,
        denoised_frames=card.geometry.latent_frames(config.frames)
        if denoised_frames is None
        else denoised_frames,
        device=device,
        ranks=ranks,
        decoder=decoder,
        sampler=pick_sampler(config, schedule_of(config, schedule)),
        branches=guidance_branches(config.guidance, distilled=card.distilled),
        latent_shape=card.geometry.latent_size(config.resolution),
    )


@cache
def _own_decoder(family: Family, config: Hashable) -> Decoder:
    """Return the decoding half of a model's own autoencoder, on meta tensors."""
    return empty_autoencoder(family.networks[AUTOENCODER], config)


@cache
def _own_encoder(family: Family, config: Hashable) -> Encoder:
    """Return the encoding half of a model's own autoencoder, on meta tensors."""
    return empty_encoder(family.networks[AUTOENCODER], config)


def _active_scopes(phase: Phase) -> int:
    """Return how many of the two scopes are on."""
    return (phase.local > NEVER) + (phase.anchors > NEVER)
