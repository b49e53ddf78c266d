"""The settings nearest to those of a run that does not fit, each of which makes it fit."""

import math
from collections.abc import Iterator
from dataclasses import replace

from vinfinity.config import ComputeConfig, leaves
from vinfinity.planning.memory import Budget, hidden_state_bytes, trace_memory
from vinfinity.planning.outline import Outline

# the largest number of ranks to propose
MAX_RANKS = 64


def nearest_settings(run: Outline, budget: Budget) -> Iterator[tuple[str, ...]]:
    """Yield options that make a run fit: memory=auto, more GPUs, fewer frames, a smaller size.

    Each is sufficient by itself, and has been traced. An option is a tuple of command-line arguments.
    """
    automatic = run.with_changes(memory="auto", compute=ComputeConfig())
    if automatic.config != run.config and _fits(automatic, budget):
        before, after = leaves(run.config), leaves(automatic.config)
        yield tuple(f"{key}={after[key] or 'null'}" for key in before if before[key] != after[key])
    single = run.with_changes(decode=replace(run.config.decode, frames=1))
    if run.blocks.frames > 1 and _fits(single, budget):
        # only decoding does not fit
        yield (f"decode.frames={single.blocks.frames}",)
        return
    frames = most_frames(run, budget)
    if frames is not None:
        each = run.card.geometry.latent_frames(frames) // run.shards.ranks
        if run.device == "cuda" and (ranks := fewest_ranks(run, budget, frames_per_rank=each)):
            yield "--gpus", str(ranks)
        if run.config.edit.run is None:
            yield "--frames", str(frames)
    if (size := largest_size(run, budget)) is not None:
        yield "--size", size


def _fits(run: Outline, budget: Budget) -> bool:
    """Return whether the leanest execution fits. Nothing is traced if two hidden states already exceed the budget."""
    execution = run.executions[-1]
    have = budget.host if run.device == "cpu" else budget.device
    narrowest = run.card.traits.denoiser.hidden
    if have is not None and 2 * hidden_state_bytes(run, execution, channels=narrowest) > have:
        return False
    return trace_memory(run, execution).fits(budget, run.device)


def most_frames(run: Outline, budget: Budget) -> int | None:
    """Return approximately the largest number of frames that fit on the same ranks, or None if one per rank does not.

    Interpolates linearly between two traces, and traces the result to confirm it.
    """
    geometry = run.card.geometry
    low, high = geometry.frames(run.ranks), geometry.frames(run.denoised_frames)
    if not _fits(run.with_changes(frames=low), budget):
        return None
    half, high_end = max(low, high // 2), high
    if _fits(run.with_changes(frames=half), budget):
        low = half
    else:
        high = half
    guess = min(_crossing(run.with_changes(frames=half), run, budget, half, high_end), high - 1)
    for part in (1.0, 0.97, 0.9, 0.5):
        frames = int(part * guess)
        if frames > low and _fits(run.with_changes(frames=frames), budget):
            return frames
    return low


def _crossing(small: Outline, large: Outline, budget: Budget, at_small: float, at_large: float) -> int:
    """Return the point at which the line through the memory of two runs reaches the budget."""
    points = [trace_memory(run, run.executions[-1]).needs(run.device) for run in (small, large)]
    crossing = at_large
    for have, low, high in zip((budget.device, budget.host), *points, strict=True):
        if have is not None and high > low:
            crossing = min(crossing, at_small + (have - low) / (high - low) * (at_large - at_small))
    return int(crossing)


def fewest_ranks(run: Outline, budget: Budget, *, frames_per_rank: int) -> int | None:
    """Return the smallest number of ranks that fit, or None.

    frames_per_rank: a number of latent frames that is known to fit on a rank.
    """
    ranks_per_clip = 2 if run.splits_branches else 1
    clips = max(run.shards.ranks + 1, -(-run.denoised_frames // max(frames_per_rank + 1, 1)))
    for ranks in range(ranks_per_clip * clips, ranks_per_clip * (clips + 3) + 1, ranks_per_clip):
        if ranks <= min(MAX_RANKS, run.denoised_frames) and _fits(run.with_changes(ranks=ranks), budget):
            return ranks
    return None


def largest_size(run: Outline, budget: Budget) -> str | None:
    """Return approximately the largest size with the same aspect ratio that fits, or None.

    Its sides are whole blocks of the network's coarsest level.
    """
    sides = run.size
    block = run.card.geometry.downscale * run.card.traits.denoiser.multiple
    longest = -(-max(sides) // block) - 1

    def scaled(blocks: int) -> Outline:
        """Return the outline of the run with `blocks` blocks along its longer side."""
        width, height = (max(1, round(blocks * side / max(sides))) * block for side in sides)
        return run.with_changes(size=f"{width}x{height}")

    if longest < 1 or not _fits(scaled(1), budget):
        return None
    areas = [math.prod(outline.latent_shape[1:]) for outline in (scaled(1), run)]
    area = _crossing(scaled(1), run, budget, *areas)
    blocks = min(longest, math.isqrt(max(1, area * longest**2 // areas[1])) + 1)
    while blocks > 1 and not _fits(scaled(blocks), budget):
        blocks -= 1
    return scaled(blocks).config.size
