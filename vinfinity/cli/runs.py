"""Commands that continue earlier runs: resume them, or reuse their latents."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.make import print_summary, start
from vinfinity.cli.options import complete_key, option
from vinfinity.cli.output import Debug, import_engine, reported
from vinfinity.config import name_sources
from vinfinity.errors import InputError
from vinfinity.parallel.place import is_rank

AS_BEFORE = "as before"
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder NAME.run, or the video NAME.mp4.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Any other setting that does not change the latents.",
        show_default=AS_BEFORE,
        autocompletion=complete_key,
    ),
]
NewSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Any other setting of the new video.",
        show_default=AS_BEFORE,
        autocompletion=complete_key,
    ),
]
Gpus = Annotated[str | None, option("gpus", default=AS_BEFORE)]
Device = Annotated[str | None, option("device", default=AS_BEFORE)]
Overwrite = Annotated[bool, option("overwrite")]
Prompt = Annotated[
    str | None, option("prompt", help="Text that describes the new frames.", default=AS_BEFORE)
]


def resume(
    context: typer.Context,
    run: Run,
    settings: Settings = None,
    gpus: Gpus = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Resume an interrupted run from its last checkpoint, on any number of GPUs.

    For example: vinfinity resume a-red-ball.run --gpus 4
    """
    from vinfinity.runs.derived import resume_settings
    from vinfinity.runs.folder import find_run

    with reported(context, debug=debug) as shutdown:
        flags, chosen = _given(gpus=gpus, device=device), _ranks_of_launcher()
        resolved = resume_settings(find_run(run), overrides=settings or [], flags=flags, chosen=chosen)
        start(resolved, shutdown, replaces=False)


def decode(
    context: typer.Context,
    run: Run,
    settings: Settings = None,
    out: Annotated[str | None, option("out", default="NAME.mp4")] = None,
    overwrite: Overwrite = False,
    decoder: Annotated[str | None, option("decoder", default=AS_BEFORE)] = None,
    gpus: Annotated[str | None, option("gpus")] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Decode the latents of a finished run again, with another decoder, codec or quality.

    For example: vinfinity decode a-red-ball.run --out smaller.mp4 video.crf=28 video.preset=slow
    """
    from vinfinity.runs.derived import check_decoded_with, load_run
    from vinfinity.runs.folder import find_run
    from vinfinity.runs.paths import Destination, check_files
    from vinfinity.runs.start import check_decoded_beside

    with reported(context, debug=debug) as shutdown:
        folder = find_run(run)
        flags = _given(out=out, overwrite=overwrite, decoder=decoder, gpus=gpus, device=device)
        chosen = {"resume": False, "save_latents": None, "gpus": 1, **_ranks_of_launcher()}
        resolved = load_run(folder, overrides=settings or [], flags=flags, chosen=chosen)
        config = resolved.config
        with name_sources(resolved.origins):
            destination = Destination.of(config).beside(folder, overwrite=config.overwrite)
            check_decoded_with(resolved)
            check_decoded_beside(folder, destination)
            check_files(config, destination, overwrite=config.overwrite, denoise=False)
            if not folder.has_latents():
                raise folder.no_latents()
            import_engine()
            from vinfinity.decode_again import decode_again

            summary = decode_again(config, folder, destination, shutdown=shutdown)
        if summary is not None:
            print_summary(summary)


def redo(
    context: typer.Context,
    run: Run,
    frames: Annotated[str, typer.Option(metavar="FROM:TO", help="Frames to regenerate; TO is excluded.")],
    settings: NewSettings = None,
    prompt: Prompt = None,
    seed: Annotated[
        str | None, option("seed", help="Seed of the new frames' noise.", default="the next number")
    ] = None,
    out: Annotated[str | None, option("out", default="NAME-redo.mp4")] = None,
    overwrite: Overwrite = False,
    gpus: Gpus = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Regenerate a range of frames to match the frames around it; all others stay bit-identical.

    For example: vinfinity redo a-red-ball.run --frames 40:60 --seed 7
    """
    from vinfinity.runs.derived import redo_settings
    from vinfinity.runs.folder import find_run

    with reported(context, debug=debug) as shutdown:
        flags = _given(prompt=prompt, seed=seed, out=out, overwrite=overwrite, gpus=gpus, device=device)
        chosen = _ranks_of_launcher()
        resolved = redo_settings(find_run(run), frames, overrides=settings or [], flags=flags, chosen=chosen)
        start(resolved, shutdown)


def extend(
    context: typer.Context,
    run: Run,
    frames: Annotated[str, typer.Option(metavar="+N", help="Number of frames to append.")],
    settings: NewSettings = None,
    prompt: Prompt = None,
    seed: Annotated[
        str | None, option("seed", help="Seed of the new frames' noise.", default=AS_BEFORE)
    ] = None,
    out: Annotated[str | None, option("out", default="NAME-extend.mp4")] = None,
    overwrite: Overwrite = False,
    gpus: Gpus = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Append frames to a finished video; existing frames stay bit-identical.

    For example: vinfinity extend a-red-ball.run --frames +48
    """
    from vinfinity.runs.derived import extend_settings
    from vinfinity.runs.folder import find_run

    with reported(context, debug=debug) as shutdown:
        if re.fullmatch(r"\+[1-9][0-9]{0,6}", frames) is None:
            remedy = "use the number of frames to append, as in --frames +48"
            raise InputError("--frames", frames, remedy, problem="is not a number of frames to append")
        flags = _given(prompt=prompt, seed=seed, out=out, overwrite=overwrite, gpus=gpus, device=device)
        chosen = _ranks_of_launcher()
        resolved = extend_settings(
            find_run(run), int(frames), overrides=settings or [], flags=flags, chosen=chosen
        )
        start(resolved, shutdown)


def _given(**options: object) -> dict[str, object]:
    """Return the options that were given, by setting: a switch that is off was not."""
    return {key: value for key, value in options.items() if value not in (None, False)}


def _ranks_of_launcher() -> dict[str, None]:
    """Return the setting that makes a run use the ranks of a launcher, if one started this process."""
    return {"gpus": None} if is_rank(os.environ) else {}
