"""One call from a prompt to a video: in memory, or as files that a later call resumes; and many in one call."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vinfinity.batch.make import BatchSummary, make_batch
from vinfinity.batch.plan import plan_batch
from vinfinity.batch.rows import python_rows, read_rows
from vinfinity.config import RunConfig, load
from vinfinity.media.source import video_defaults
from vinfinity.pipeline import LOADED, Pipeline, Prompts, load_in_memory
from vinfinity.run import launch_run, run
from vinfinity.runs.parts import read_manifest
from vinfinity.runs.paths import Destination
from vinfinity.system.folders import expanded, temporary_folder
from vinfinity.task import Summary, Task
from vinfinity.video import Video
from vinfinity.weights.card import model_defaults


def generate(prompt: Prompts, *, gpus: int | None = None, **settings: Any) -> Video:
    """Generate a video and return its frames and latents.

    prompt: a text, or a list of prompts over time, see `Pipeline`. gpus: GPUs to share the video; more than one start a
    process each. settings: any setting of a video, such as model, frames, size, seed, steps, guidance or
    `attention={"local": 4}`; the model's card fills the rest.

    The weights are loaded for every call; to generate several videos, keep a `Pipeline`. Raises InputError for unusable
    settings, NotFiniteError for NaN or infinite values, RankError if a process fails.
    """
    if gpus is None or gpus == 1:
        loaded = {name: settings.pop(name) for name in LOADED if name in settings}
        return Pipeline.from_pretrained(**loaded)(prompt, **settings)
    with temporary_folder() as folder:
        fixed = {"gpus": gpus, "out": folder / "video.mp4"}
        config = load_in_memory(prompt, settings, fixed=fixed, allowed=("parallel",))
        task = Task.of(config, Destination.of(config), decode=False)
        launch_run(task)
        latents = read_manifest(task.destination.folder.latents)
        whole = latents.read(range(latents.frames))[None]
    loaded = {name: getattr(config, name) for name in LOADED if name != "lora"}
    return Pipeline.from_pretrained(**loaded).decode_job(task.job, whole)


def generate_file(config: RunConfig) -> Summary | None:
    """Generate the MP4 that `config` describes, as the command line does: with a run folder and checkpoints, resumable,
    on as many GPUs as `config.gpus` asks for or a launcher started.

    Returns None on ranks other than 0, and if the run is finished already. Raises VinfinityError, also if the files of
    a finished run were made with other settings.
    """
    return run(config)


def generate_batch(
    rows: str | Path | Sequence[str | Mapping[str, Any]],
    *,
    folder: str | Path | None = None,
    seeds: Iterable[int] | None = None,
    part: str | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> BatchSummary | None:
    """Generate the MP4s of many rows, as `vinfinity batch` does: weights are loaded once, finished videos are skipped,
    a failing one is passed over.

    rows: the path of a file, or prompts and mappings of settings. folder: of the videos; by default named after the
    file, or `videos`. seeds: each row is made once with each of them. part: such as `3/8`, for processes that share a
    batch. config: a YAML file with settings of all rows. settings: of all rows, too, such as `frames=64` or the
    template `out="{index:04}-{slug}-{seed}.mp4"`; a row's own come before them.

    Returns what became of the videos; None on ranks other than 0. Raises InputError for any faulty row before weights
    are loaded, and Stopped, OutputError or RankError where the batch ends early; calling it again goes on.
    """
    file = None if config is None else expanded(config, field="config")
    card = cache(model_defaults)
    name = "videos"
    if isinstance(rows, str | Path):
        path = expanded(rows, field="rows")
        name, found = path.stem, read_rows(path)
    else:
        found = python_rows(rows)
    planned = plan_batch(
        found,
        lambda row: load(file, settings=settings, row=row, card=card, video=video_defaults),
        name=name,
        folder=name if folder is None else folder,
        seeds=seeds if seeds is None or isinstance(seeds, Sequence) else tuple(seeds),
        part=part,
    )
    return make_batch(planned)
