"""One call from a prompt to a video: in memory, or as files that a later call resumes."""

from typing import Any

from vinfinity.config import RunConfig
from vinfinity.pipeline import LOADED, Pipeline, Prompts, Video, as_settings
from vinfinity.resolve import load_config
from vinfinity.run import Summary, Task, launch_run, run
from vinfinity.runs.parts import read_manifest
from vinfinity.runs.paths import Destination
from vinfinity.system.folders import temporary_folder


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
        out = folder / "video.mp4"
        config = load_config(**as_settings(prompt), gpus=gpus, out=out, **settings)
        task = Task.of(config, Destination.of(config), decode=False)
        launch_run(task)
        latents = read_manifest(task.destination.folder.latents)
        whole = latents.read(range(latents.frames))[None]
    loaded = {name: getattr(config, name) for name in LOADED if name != "lora"}
    return Pipeline.from_pretrained(**loaded).decode_job(task.job, whole)


def generate_file(config: RunConfig) -> Summary | None:
    """Generate the MP4 that `config` describes, as the command line does: with a run folder and checkpoints, resumable,
    on as many GPUs as `config.gpus` asks for or a launcher started.

    Returns None on ranks other than 0, and if the run is finished already. Raises VinfinityError.
    """
    return run(config)
