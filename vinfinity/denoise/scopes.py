"""The scopes of dual-scope attention in each phase of a run's schedule."""

from collections.abc import Sequence

from vinfinity.config import AttentionConfig, Phase
from vinfinity.parallel.context import Scopes


def scopes_of(attention: AttentionConfig, phase: Phase, anchors: int | Sequence[int]) -> Scopes:
    """The scopes of dual-scope attention in a phase of its schedule. anchors: how many, or which frames."""
    return Scopes(
        local=attention.local,
        anchors=anchors if isinstance(anchors, int) else tuple(anchors),
        local_bias=phase.local,
        anchor_bias=phase.anchors,
        entropy_scaling=attention.entropy_scaling,
    )
