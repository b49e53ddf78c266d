"""The first pass of a video that is generated in two passes: a run inside the run folder. Imports no torch."""

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

# nearly lossless, because the second pass starts from this video
CRF = 10
# settings whose defaults come from the first pass's own model
MODEL_SETTINGS = ("steps", "sampler", "guidance")


def first_pass(config: RunConfig, folder: RunFolder, *, planned: bool = False) -> RunConfig | None:
    """Return the settings of a run's first pass; None if it has none, or resumes and no longer needs it.

    Settings that `first_pass` leaves open are those of the video, or with another model the defaults on that model's
    card. An edit has no first pass: it takes that of the run it edits. folder: the run's folder. planned: see
    `model_defaults`. Raises InputError.
    """
    first = config.first_pass
    if not config.two_passes or config.edit.run is not None:
        return None
    # checked before the first pass's model is looked up, because that may be gone
    if config.resume and not planned and video_is_encoded(folder, config):
        return None
    changes: dict[str, Any] = {"size": first.size}
    if first.model is not None:
        with naming_first_pass():
            card, _ = model_defaults(first.model, planned=planned)
            attention = _attention(config, first.model, planned=planned)
        changes |= {name: card[name] for name in MODEL_SETTINGS}
        changes |= {"attention": attention, "lora": (), "decoder": None, "shift": None}
    changes |= {name: value for name, value in vars(first).items() if value is not None}
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
    """Return the attention of a first pass with another model: the video's, with that model's trained length.

    Scopes count latent frames, which differ between families: a model of another family has its own attention.
    """
    find = planned_card if planned else read_card
    attention = load(
        None, flags={"model": model}, card=partial(model_defaults, planned=planned)
    ).config.attention
    if find(model).family is not find(config.model).family:
        return attention
    return replace(config.attention, trained_frames=attention.trained_frames)


@contextlib.contextmanager
def naming_first_pass() -> Iterator[None]:
    """Name the setting `first_pass.KEY` in an InputError of the block about KEY."""
    try:
        yield
    except InputError as error:
        raise about_first_pass(error) from error


def about_first_pass(error: InputError) -> InputError:
    """Return an error about the first pass's settings that names each setting as users set it."""
    key = f"first_pass.{error.field}"
    if key in declared():
        return error.about(key)
    remedy = error.remedy.replace("--size ", "first_pass.size=")
    problem = f"{error.problem} in the first pass"
    return type(error)(error.field, error.value, remedy, problem=problem, source=error.source)
