"""The temporal context in force at each step of a run: its scenes, and plain attention or dual scopes in each."""

from collections.abc import Sequence

import torch

from vinfinity.config import AttentionConfig, Phase
from vinfinity.denoise.selection import Selection
from vinfinity.parallel.context import TemporalContext, temporal_context
from vinfinity.parallel.exchange import FrameExchange
from vinfinity.parallel.scopes import PLAIN, Scopes
from vinfinity.parallel.shards import anchor_frames
from vinfinity.parallel.teams import Team
from vinfinity.parallel.timeline import Scene, Timeline


def scopes_of(attention: AttentionConfig, phase: Phase) -> Scopes:
    """Return the scopes of dual-scope attention in a phase of its schedule."""
    return Scopes(
        local=attention.local,
        anchors=attention.anchors,
        local_bias=phase.local,
        anchor_bias=phase.anchors,
        entropy_scaling=attention.entropy_scaling,
    )


def timeline_of(
    attention: AttentionConfig, selection: Selection, scenes: Sequence[range], *, loop: bool, shift: int = 0
) -> Timeline:
    """Return the scenes of a video as positions in a selection of its frames.

    scenes: spans of latent frames. A scene no longer than the training clips gets plain attention, so that it is the
    base model's own output. shift: by how many frames anchors have moved, each within its scene.
    """
    position = {frame: index for index, frame in enumerate(selection.frames)}
    found: list[Scene] = []
    for scene in scenes:
        selected = [position[frame] for frame in scene if frame in position]
        if not selected:
            continue
        plain = len(scene) <= attention.trained_frames
        anchors = () if plain else anchor_frames(len(scene), attention.anchors)
        places = sorted(position[scene.start + (anchor + shift) % len(scene)] for anchor in anchors)
        found.append(Scene(range(selected[0], selected[-1] + 1), tuple(places), plain, len(scene)))
    complete = len(selection.frames) == scenes[-1].stop
    return Timeline(tuple(found), loop, None if complete else tuple(selection.frames))


class ScheduledContexts:
    """The temporal contexts of a rank, one for each phase of the attention schedule, built when first needed.

    scenes: spans of latent frames that do not see each other. loop: whether the last frame leads into the first.
    timesteps: the timesteps of all steps, for anchors that move from step to step; in an edit, which computes a
    selection of frames, anchors do not move. Within a selection, the distance between two frames is the number of
    selected frames from one to the other, except for rotary positions. joint: whether the model has joint attention.
    """

    def __init__(
        self,
        attention: AttentionConfig,
        selection: Selection,
        scenes: Sequence[range],
        *,
        loop: bool,
        timesteps: Sequence[float],
        team: Team,
        exchange: FrameExchange,
        chunk_bytes: int,
        device: torch.device,
        joint: bool = False,
    ) -> None:
        self._joint = attention.positions if joint else None
        self._attention, self._selection, self._scenes, self._loop = attention, selection, scenes, loop
        self._team, self._exchange = team, exchange
        self._chunk_bytes, self._device = chunk_bytes, device
        complete = len(selection.frames) == scenes[-1].stop
        self._moving = attention.moving_anchors and complete
        self._plain = all(len(scene) <= attention.trained_frames for scene in scenes)
        self._step = {t: step for step, t in enumerate(timesteps)}
        self._built: dict[tuple[Scopes, int], TemporalContext] = {}

    def __call__(self, t: float) -> TemporalContext:
        """Return the context at training timestep t, which must be one of `timesteps`."""
        attention, plain = self._attention, self._plain
        scopes = PLAIN if plain else scopes_of(attention, attention.phase(t))
        shift = self._step[t] if self._moving and not plain else 0
        if (scopes, shift) not in self._built:
            if self._moving:
                # each context is needed in one step only
                self._built.clear()
            timeline = timeline_of(attention, self._selection, self._scenes, loop=self._loop, shift=shift)
            self._built[scopes, shift] = temporal_context(
                self._exchange,
                self._team.shards,
                self._team.member,
                scopes,
                timeline=timeline,
                trained_frames=attention.trained_frames,
                norm=attention.norm,
                chunk_bytes=self._chunk_bytes,
                joint=self._joint,
                device=self._device,
            )
        return self._built[scopes, shift]
