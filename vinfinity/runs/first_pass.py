"""The first pass of a video that is generated in two: a run of its own inside the run folder. Imports no torch."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from vinfinity.config import (
    AttentionConfig,
    EditConfig,
    FirstPassConfig,
    RunConfig,
    VideoConfig,
    declared,
    load,
)
from vinfinity.errors import InputError
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.sources import video_is_encoded
from vinfinity.weights.card import model_defaults, planned_card, read_card

# nearly lossless: the second pass starts from it
CRF = 10
# settings that another model supplies for the first pass, too
OF_MODEL = ("steps", "sampler", "guidance")


def first_pass(config: RunConfig, folder: RunFolder, *, planned: bool = False) -> RunConfig | None:
    """The settings of the first pass of a run; None if it has none, or resumes and does not need it any more.

    Whatever `first_pass` does not say is as in the video, and with another model as that model's card has it. An edit
    takes the latents of the first pass from the run that is edited. folder: of the run. planned: see `model_defaults`.
    Raises InputError.
    """
    own = config.first_pass
    if not config.two_passes or config.edit.run is not None:
        return None
    # before its model is looked for, which need not be there any more
    if config.resume and not planned and video_is_encoded(folder, config):
        return None
    changes: dict[str, Any] = {"size": own.size}
    if own.model is not None:
        with naming_first_pass():
            card, _ = model_defaults(own.model, planned=planned)
            attention = _attention(config, own.model, planned=planned)
        changes |= {name: card[name] for name in OF_MODEL}
        changes |= {"attention": attention, "lora": (), "decoder": None, "shift": None}
    changes |= {name: value for name, value in vars(own).items() if value is not None}
    with naming_first_pass():
        return replace(
            config,
            **changes,
            first_pass=FirstPassConfig(),
            input=replace(
                config.input, strength=None, fit=config.input.fit if config.input.pictures else None
            ),
            edit=EditConfig(),
            noise_from=None,
            audio=None,
            save_latents=None,
            video=VideoConfig(crf=CRF, sheet=False),
            out=str(folder.first_pass),
            overwrite=False,
            resume=True,
        )


def _attention(config: RunConfig, model: str, *, planned: bool) -> AttentionConfig:
    """The attention of a first pass with another model: that of the video, with the length of that model's clips.

    Scopes of another family count other frames: there, it is that model's own.
    """
    find = planned_card if planned else read_card
    own = load(None, flags={"model": model}, card=partial(model_defaults, planned=planned)).config.attention
    if find(model).family is not find(config.model).family:
        return own
    return replace(config.attention, trained_frames=own.trained_frames)


@contextlib.contextmanager
def naming_first_pass() -> Iterator[None]:
    """Names the setting of `first_pass` in an InputError about one of the first pass's settings."""
    try:
        yield
    except InputError as error:
        raise about_first_pass(error) from error


def about_first_pass(error: InputError) -> InputError:
    """An error about a setting of the first pass, which names it as users set it."""
    key = f"first_pass.{error.field}"
    if key in declared():
        return error.about(key)
    remedy = error.remedy.replace("--size ", "first_pass.size=")
    problem = f"{error.problem} in the first pass"
    return type(error)(error.field, error.value, remedy, problem=problem, source=error.source)
