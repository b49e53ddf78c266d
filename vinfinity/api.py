"""One call from a prompt to a video: in memory, as files that a later call can resume, or many at once."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vinfinity.batch.make import BatchSummary, make_batch
from vinfinity.batch.plan import plan_batch
from vinfinity.batch.rows import python_rows, read_rows
from vinfinity.config import RunConfig, load
from vinfinity.media.source import video_defaults
from vinfinity.networks import Networks
from vinfinity.parallel.ranks import Ranks
from vinfinity.pipeline import LOADED, Pipeline, Prompts, decode_video, load_in_memory
from vinfinity.run import launch_run, run
from vinfinity.runs.folder import run_folder
from vinfinity.runs.parts import read_manifest
from vinfinity.runs.paths import Destination
from vinfinity.session import resumable
from vinfinity.system.folders import expanded, temporary_folder
from vinfinity.task import Summary, Task
from vinfinity.video import Video
from vinfinity.weights.card import model_defaults


def generate(prompt: Prompts, *, gpus: int | None = None, **settings: Any) -> Video:
    """Generate a video and return its frames and latents.

    prompt: a text, or a list of prompts over time, see `Pipeline`. gpus: the number of GPUs that share the video; for
    more than one, each gets a process of its own. settings: any setting of a video, such as model, frames, size, seed,
    steps, guidance or `attention={"local": 4}`; the model's card provides the rest.

    The weights are loaded for every call; to generate several videos, keep a `Pipeline`. Raises InputError for unusable
    settings, NotFiniteError for NaN or infinite values, RankError if a process fails. What several GPUs computed before
    an error is kept in a temporary folder, and the error says how to resume the run.
    """
    if gpus is None or gpus == 1:
        loaded = {name: settings.pop(name) for name in LOADED if name in settings}
        return Pipeline.from_pretrained(**loaded)(prompt, **settings)
    return _generate_on(gpus, prompt, settings)


def _generate_on(gpus: int, prompt: Prompts, settings: Mapping[str, Any]) -> Video:
    """Generate a video on several ranks, and decode it in this process."""

    def kept(error: BaseException) -> bool:
        """Return whether the run has computed anything, and make the error say how to use it."""
        run = run_folder(video)
        if not run.holds_work():
            return False
        if str(run.path) not in str(error):
            error.add_note(f"`vinfinity resume {run.path}` makes the video from what was computed")
        return True

    with temporary_folder(kept=kept) as folder:
        video = folder / "video.mp4"
        config = load_in_memory(prompt, settings, fixed={"gpus": gpus, "out": video}, allowed=("parallel",))
        task = Task.of(config, Destination.of(config), decode=False)
        launch_run(task)
        with resumable(task.destination.folder):
            latents = read_manifest(task.destination.folder.latents)
            whole = latents.read(range(latents.frames))[None]
            ranks = Ranks.of_one(config.device)
            # only the decoder: there may be no memory for the other networks along with its pictures
            return decode_video(task.job, whole, Networks(ranks.device).decoder(task.job), ranks)


def generate_file(config: RunConfig) -> Summary | None:
    """Generate the video file that `config` describes, as the command line does: with a run folder and checkpoints, so
    that it can be resumed, on the number of GPUs in `config.gpus` or on those that a launcher started.

    Returns None on ranks other than 0, and if the run is already finished. Raises VinfinityError, also if the files of
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
    """Generate the videos of many rows, as `vinfinity batch` does.

    Weights are loaded once, finished videos are skipped, and a video that fails does not end the batch.

    rows: the path of a file, or prompts and mappings of settings. folder: the folder for the videos, by default named
    after the file, or `videos`. seeds: each row is generated once per seed. part: for example `3/8`, for processes that
    share a batch. config: a YAML file with settings for all rows. settings: more settings for all rows, such as
    `frames=64` or the template `out="{index:04}-{slug}-{seed}.mp4"`; a row's own settings take precedence.

    Returns the outcome of each video; None on ranks other than 0. Raises InputError for any faulty row before weights
    are loaded, and Stopped, OutputError or RankError if the batch ends early; calling it again resumes it.
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
