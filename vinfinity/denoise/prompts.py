"""Prompts over time: which text guides each frame, and where scenes begin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vinfinity.config import RunConfig, timed_prompts
from vinfinity.config.prompts import TimedPrompt
from vinfinity.models.frame_text import FrameText
from vinfinity.models.geometry import LatentGeometry


@dataclass(frozen=True)
class Mix:
    """A blend of the text states of two prompts.

    first, second: the numbers of the prompts. weight: the weight of the second one.
    """

    first: int
    second: int
    weight: float


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of a video. The first starts at latent frame 0, each other one later than the one before it.

    frames: number of latent frames in the video. loop: whether the last prompt leads into the first.
    """

    prompts: tuple[TimedPrompt, ...]
    frames: int
    loop: bool = False

    @property
    def scenes(self) -> list[range]:
        """The latent frames of each scene."""
        starts = [0, *(prompt.start for prompt in self.prompts[1:] if prompt.cut)]
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], self.frames], strict=True)]

    def texts(self, *, guided: bool) -> list[str]:
        """Return the distinct texts, in the order of their first use. guided: whether negative texts are used."""
        used = [text for prompt in self.prompts for text in (prompt.texts if guided else prompt.texts[1:])]
        return list(dict.fromkeys(used))

    def mix(self, frame: int) -> Mix:
        """Return the prompts that guide a latent frame. Prompts with the same texts count as one."""
        for number, prompt in enumerate(self.prompts):
            weight = self._weight(prompt, frame)
            if 0 < weight < 1 and (number or self.loop):
                first, second = self._number(number - 1), self._number(number)
                if first != second:
                    return Mix(first, second, weight)
        in_force = max(number for number, prompt in enumerate(self.prompts) if prompt.start <= frame)
        return Mix(self._number(in_force), self._number(in_force), 1.0)

    def _weight(self, prompt: TimedPrompt, frame: int) -> float:
        """Return the weight of a prompt against the one before it: between 0 and 1 while they blend, else 0 or 1."""
        distance = frame + 0.5 - prompt.start
        if self.loop:
            distance = (distance + self.frames / 2) % self.frames - self.frames / 2
        if prompt.cut or prompt.blend == 0:
            return float(distance > 0)
        return min(1.0, max(0.0, distance / prompt.blend + 0.5))

    def _number(self, number: int) -> int:
        """Return the number of the first prompt with the same texts."""
        texts = self.prompts[number].texts
        return next(index for index, prompt in enumerate(self.prompts) if prompt.texts == texts)

    def text_of(self, states: Tensor, frames: Sequence[int], *, guided: bool) -> FrameText:
        """Return the text of some latent frames. states: (n, t, c), the states of `texts`, in their order."""
        texts, mixes = self.texts(guided=guided), [self.mix(frame) for frame in frames]
        different = list(dict.fromkeys(mixes))

        def branch(mix: Mix, which: int) -> Tensor:
            one, other = (texts.index(self.prompts[n].texts[which]) for n in (mix.first, mix.second))
            # avoid rounding if both prompts have the same text
            return states[other] if one == other else torch.lerp(states[one], states[other], mix.weight)

        used = (0, 1) if guided else (1,)
        branches = [torch.stack([branch(mix, which) for mix in different]) for which in used]
        number = {mix: index for index, mix in enumerate(different)}
        of_frames = None if len(different) == 1 else tuple(number[mix] for mix in mixes)
        return FrameText(torch.stack(branches), of_frames)


def schedule_prompts(config: RunConfig, geometry: LatentGeometry) -> PromptSchedule:
    """Return the prompts of a run, in latent frames. Raise InputError if they do not fit into the video."""
    prompts = tuple(
        replace(
            prompt,
            start=geometry.latent_frames(prompt.start + 1) - 1,
            blend=-(-prompt.blend // geometry.time_downscale),
        )
        for prompt in timed_prompts(config)
    )
    return PromptSchedule(prompts, geometry.latent_frames(config.frames), config.loop)
