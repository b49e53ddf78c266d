"""Commands for runs that were begun before: going on, and using again what they computed."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.make import print_summary, start
from vinfinity.cli.options import DEVICES
from vinfinity.cli.output import Debug, held_interrupts, reported
from vinfinity.errors import InputError
from vinfinity.parallel.place import is_rank

Run = Annotated[Path, typer.Argument(metavar="RUN", help="NAME.run, or the video NAME.mp4.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that do not change the video's latents."),
]
NewSettings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any other setting of the new video.")
]
Gpus = Annotated[str | None, typer.Option(metavar="N", help="GPUs to share the video. [as before]")]
DeviceOption = Annotated[str | None, typer.Option(metavar="|".join(DEVICES), help="What to compute on.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def resume(
    run: Run,
    settings: Settings = None,
    gpus: Gpus = None,
    device: DeviceOption = None,
    debug: Debug = False,
) -> None:
    """Go on with a run that was ended, from what it kept, on any number of GPUs.

    For example: vinfinity resume a-red-ball.run --gpus 4
    """
    from vinfinity.runs.folder import find_run
    from vinfinity.runs.start import load_run

    with reported(debug=debug):
        folder = find_run(run)
        config = load_run(
            folder, overrides=settings or [], flags={"resume": True, "device": device, **_gpus(gpus)}
        )
        start(config)


def decode(
    run: Run,
    settings: Settings = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE.mp4", help="The video. [NAME.mp4]")
    ] = None,
    overwrite: Overwrite = False,
    decoder: Annotated[str | None, typer.Option(metavar="FOLDER", help="Another decoder.")] = None,
    gpus: Gpus = None,
    device: DeviceOption = None,
    debug: Debug = False,
) -> None:
    """Decode the latents of a run once more, with other settings of the decoder or the codec.

    For example: vinfinity decode a-red-ball.run --out smaller.mp4 video.crf=28 video.preset=slow
    """
    from vinfinity.runs.folder import find_run
    from vinfinity.runs.paths import Destination, check_files
    from vinfinity.runs.start import load_run

    with reported(debug=debug):
        folder = find_run(run)
        given = {"resume": False, "overwrite": overwrite, "save_latents": "null"}
        flags = given | {"out": out, "decoder": decoder, "device": device, **_gpus(gpus, default="1")}
        config = load_run(folder, overrides=settings or [], flags=flags)
        destination = Destination.of(config)
        check_files(config, destination, overwrite=config.overwrite)
        if not (folder.latents / "manifest.json").exists():
            remedy = f"`vinfinity resume {folder.path}` computes them"
            raise InputError("run", run, remedy, problem="has no final latents yet")
        with held_interrupts():
            from vinfinity.run import decode_again
        summary = decode_again(config, folder, destination, handle_signals=True)
        if summary is not None:
            print_summary(summary)


def redo(
    run: Run,
    settings: NewSettings = None,
    frames: Annotated[str, typer.Option(metavar="FROM:TO", help="The stretch, without frame TO.")] = "",
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What it shows. [as before]")] = None,
    seed: Annotated[str | None, typer.Option(metavar="N", help="Its noise. [the next number]")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE.mp4", help="The video. [NAME-redo.mp4]")
    ] = None,
    overwrite: Overwrite = False,
    gpus: Gpus = None,
    device: DeviceOption = None,
    debug: Debug = False,
) -> None:
    """Make one stretch of a video anew, to fit to the frames around it, which stay to the bit.

    For example: vinfinity redo a-red-ball.run --frames 40:60 --seed 7
    """
    with reported(debug=debug):
        if not frames:
            raise InputError("--frames", "none given", "name the stretch, such as --frames 40:60")
        given = {"edit.redo": frames, "seed": seed, "prompt": prompt}
        _edit(run, "redo", settings, given, out=out, overwrite=overwrite, gpus=gpus, device=device)


def extend(
    run: Run,
    settings: NewSettings = None,
    frames: Annotated[str, typer.Option(metavar="+N", help="How many frames more.")] = "",
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What they show. [as before]")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE.mp4", help="The video. [NAME-extend.mp4]")
    ] = None,
    overwrite: Overwrite = False,
    gpus: Gpus = None,
    device: DeviceOption = None,
    debug: Debug = False,
) -> None:
    """Make a video longer; its frames stay to the bit.

    For example: vinfinity extend a-red-ball.run --frames +48
    """
    with reported(debug=debug):
        if re.fullmatch(r"\+[1-9]\d{0,6}", frames) is None:
            raise InputError("--frames", frames or "none given", "say how many more, such as --frames +48")
        given = {"frames": frames, "prompt": prompt}
        _edit(run, "extend", settings, given, out=out, overwrite=overwrite, gpus=gpus, device=device)


def _edit(
    run: Path,
    kind: str,
    settings: list[str] | None,
    given: dict[str, str | None],
    *,
    out: str | None,
    overwrite: bool,
    gpus: str | None,
    device: str | None,
) -> None:
    """Starts a run whose frames are those of an earlier one, but for what `given` says."""
    from vinfinity.runs.folder import find_run
    from vinfinity.runs.start import edited

    folder = find_run(run)
    flags = {"overwrite": overwrite, "out": out, "device": device, **_gpus(gpus)}
    config = edited(folder, kind, overrides=settings or [], given=given, flags=flags)
    start(config)


def _gpus(given: str | None, *, default: str | None = None) -> dict[str, str | None]:
    """The number of ranks: the one that was given, else the launcher's where there is one, else `default`."""
    if given is None and is_rank(os.environ):
        return {"gpus": "null"}
    return {"gpus": given or default}
