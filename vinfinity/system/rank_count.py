"""The largest number of ranks that a video can be shared by."""

from vinfinity.errors import InputError


def check_rank_count(ranks: int, frames: int, *, advice: str = "") -> None:
    """Raise InputError if there are more ranks than frames, of which each rank needs at least one.

    advice: text to append to the remedy, such as how to run without the launcher.
    """
    if ranks > frames:
        problem = f"is more than the {frames} frames"
        raise InputError("gpus", ranks, f"use at most {frames}{advice}", problem=problem)
