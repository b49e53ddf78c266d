"""The temporal context in force at each timestep of a run: plain attention, or dual scopes as scheduled."""

from collections.abc import Sequence

import torch

from vinfinity.config import AttentionConfig, Phase
from vinfinity.denoise.selection import Selection
from vinfinity.parallel.context import TemporalContext, temporal_context
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import anchor_frames
from vinfinity.parallel.teams import Team


def scopes_of(attention: AttentionConfig, phase: Phase, anchors: int | Sequence[int]) -> Scopes:
    """The scopes of dual-scope attention in a phase of its schedule. anchors: how many, or which frames."""
    return Scopes(
        local=attention.local,
        anchors=anchors if isinstance(anchors, int) else tuple(anchors),
        local_bias=phase.local,
        anchor_bias=phase.anchors,
        entropy_scaling=attention.entropy_scaling,
    )


class ScheduledContexts:
    """The temporal context of a rank at a training timestep; one is built for each phase, when it is first needed.

    frames: latent frames of the video. A video no longer than the trained clip gets plain attention, so that it is the
    base model's own output. Where only a selection of frames is computed, the distance between two frames is their
    distance within the selection.
    """

    def __init__(
        self,
        attention: AttentionConfig,
        selection: Selection,
        *,
        frames: int,
        team: Team,
        exchange: FrameExchange,
        chunk_bytes: int,
        device: torch.device,
    ) -> None:
        self._attention, self._team, self._exchange = attention, team, exchange
        self._trained, self._chunk_bytes, self._device = attention.trained_frames, chunk_bytes, device
        self._plain = frames <= self._trained
        self._anchors = tuple(
            selection.frames.index(anchor) for anchor in anchor_frames(frames, attention.anchors)
        )
        self._built: dict[Scopes | None, TemporalContext] = {}

    def __call__(self, t: float) -> TemporalContext:
        """The context at training timestep t."""
        attention = self._attention
        scopes = None if self._plain else scopes_of(attention, attention.phase(t), self._anchors)
        if scopes not in self._built:
            self._built[scopes] = temporal_context(
                self._exchange,
                self._team.shards,
                self._team.member,
                scopes,
                trained_frames=self._trained,
                norm=attention.norm,
                chunk_bytes=self._chunk_bytes,
                device=self._device,
            )
        return self._built[scopes]
