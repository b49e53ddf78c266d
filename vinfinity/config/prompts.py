"""Prompts over time: when each begins, and how it takes over from the previous one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from vinfinity.errors import InputError

# number of frames over which a prompt takes over from the previous one, unless its `blend` is set
BLEND = 16


@dataclass(frozen=True)
class Prompt:
    """A prompt that applies from some moment of the video on.

    text: a description of the video. at: the start, as a frame (96), seconds (12s) or a percentage of the video (50%).
    negative: what the video should not show; by default, the setting `negative`. blend: the frames or seconds around
    the start in which text states are interpolated from the previous prompt's; by default 16 frames, or fewer if
    prompts are closer. cut: whether to begin a new scene, whose frames see none of the earlier frames.
    """

    text: str
    at: int | str = 0
    negative: str | None = None
    blend: int | str | None = None
    cut: bool = False


@dataclass(frozen=True)
class TimedPrompt:
    """A prompt that applies from a frame on, or from a latent frame on in models that compress time.

    start: its first frame. blend: the number of frames around the start in which text states are interpolated from the
    previous prompt's; 0 for none. cut: whether a new scene begins.
    """

    start: int
    text: str
    negative: str
    blend: int = 0
    cut: bool = False

    @property
    def texts(self) -> tuple[str, str]:
        """The negative text and the text."""
        return self.negative, self.text

    @property
    def window(self) -> tuple[float, float]:
        """The (first, last) position in frames between which text states are interpolated."""
        return self.start - self.blend / 2, self.start + self.blend / 2


def time_prompts(
    prompt: str, prompts: Sequence[Prompt], *, negative: str, frames: int, fps: Fraction | int, loop: bool
) -> tuple[TimedPrompt, ...]:
    """Convert `prompt`, if there is one, and `prompts` to frames of the video. frames: the length of the video.

    Raises InputError unless the first begins at 0 and each begins after the previous one, with room to blend.
    """
    entries = [(prompt, 0, Prompt(prompt))] if prompt or not prompts else []
    for index, entry in enumerate(prompts):
        field = f"prompts[{index}]"
        if not entry.text.strip():
            raise InputError(f"{field}.text", entry.text, "describe the video", problem="is blank")
        start = parse_moment(entry.at, frames=frames, fps=fps, field=f"{field}.at")
        if not entries and start:
            remedy = "start it at 0, or add another before it with `prompt`"
            raise InputError(f"{field}.at", entry.at, remedy, problem="leaves the beginning without a prompt")
        if entries and start <= entries[-1][1]:
            remedy = "remove `prompt`, or start it later" if start == 0 else "put prompts in order"
            problem = f"is frame {start}, but the previous prompt begins at frame {entries[-1][1]}"
            raise InputError(f"{field}.at", entry.at, remedy, problem=problem)
        if start >= frames:
            remedy = f"use a moment before frame {frames}, or more frames"
            raise InputError(
                f"{field}.at", entry.at, remedy, problem=f"is beyond the video's {frames} frames"
            )
        if entry.cut and loop and start:
            remedy = "remove `cut` or `loop`"
            raise InputError(
                f"{field}.cut", True, remedy, problem="begins a new scene, but a loop is one scene"
            )
        entries.append((field, start, entry))
    return _blended(entries, negative=negative, frames=frames, fps=fps, loop=loop)


def parse_moment(moment: int | str, *, frames: int, fps: Fraction | int, field: str) -> int:
    """Return the frame of a moment such as 96, `12s` or `50%`. frames: the length of the video. Raises InputError."""
    if isinstance(moment, str):
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(s|%)?", moment)
        if match is None or (match[2] is None and "." in match[1]):
            remedy = "write a frame (96), seconds (12s) or a percentage (50%)"
            raise InputError(field, moment, remedy, problem="is not a moment of the video")
        amount = Fraction(match[1])
        scale = {None: Fraction(1), "s": Fraction(fps), "%": Fraction(frames, 100)}[match[2]]
        return round(amount * scale)
    if moment < 0:
        raise InputError(field, moment, "count frames from 0", problem="is negative")
    return moment


def _blended(
    entries: Sequence[tuple[str, int, Prompt]], *, negative: str, frames: int, fps: Fraction | int, loop: bool
) -> tuple[TimedPrompt, ...]:
    """Return the prompts with their blends. entries: (field, first frame, prompt) of each."""
    starts = [start for _, start, _ in entries]
    around = [starts[-1] - frames if loop else 0, *starts, frames]
    timed = []
    for index, (field, start, entry) in enumerate(entries):
        room = min(start - around[index], around[index + 2] - start)
        blend = min(BLEND, room)
        if entry.blend is not None:
            blend = parse_moment(entry.blend, frames=frames, fps=fps, field=f"{field}.blend")
            if entry.cut and blend:
                raise InputError(f"{field}.blend", entry.blend, "remove it", problem="has no effect at a cut")
        if entry.cut or (index == 0 and not (loop and len(entries) > 1)):
            blend = 0
        timed.append(
            TimedPrompt(
                start, entry.text, negative if entry.negative is None else entry.negative, blend, entry.cut
            )
        )
    for (before, after), (earlier, later) in zip(pairwise(timed), pairwise(entries), strict=True):
        if before.window[1] <= after.window[0]:
            continue
        # default blends are short enough: one of the two was set
        (field, _, entry), problem = later, f"reaches back to the change at frame {before.start}"
        if entry.blend is None or not after.blend:
            (field, _, entry), problem = earlier, f"reaches the change at frame {after.start}"
        elif before is timed[0] and not before.blend:
            problem = "reaches back to the beginning of the video"
        assert entry.blend is not None
        raise InputError(f"{field}.blend", entry.blend, "use a shorter blend", problem=problem)
    if timed[-1].window[1] > frames + (timed[0].window[0] if loop else 0):
        field, _, entry = entries[-1]
        remedy = "use a shorter blend"
        raise InputError(
            f"{field}.blend", entry.blend or 0, remedy, problem="reaches beyond the end of the video"
        )
    return tuple(timed)
