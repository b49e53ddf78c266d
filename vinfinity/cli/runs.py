"""Commands for runs that were begun before: going on, and using again what they computed."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.options import DEVICES
from vinfinity.cli.output import Debug, held_interrupts, reported
from vinfinity.cli.run import print_summary
from vinfinity.errors import InputError

Run = Annotated[Path, typer.Argument(metavar="RUN", help="NAME.run, or the video NAME.mp4.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that do not change the video's latents."),
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
    from vinfinity.media.files import output_path
    from vinfinity.progress import note
    from vinfinity.runs.folder import find_run
    from vinfinity.runs.start import how_to_start, load_run

    with reported(debug=debug):
        folder = find_run(run)
        config = load_run(
            folder, overrides=settings or [], flags={"resume": True, "device": device, **_gpus(gpus)}
        )
        if how_to_start(config) == "done":
            note(f"{output_path(config)} is finished; nothing is left to do")
            return
        with held_interrupts():
            from vinfinity.generate import run as go_on
        summary = go_on(config, {})
        if summary is not None:
            print_summary(summary)


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
    from vinfinity.media.files import check_files
    from vinfinity.runs.folder import find_run
    from vinfinity.runs.start import load_run

    with reported(debug=debug):
        folder = find_run(run)
        given = {"resume": False, "overwrite": overwrite, "save_latents": "null"}
        flags = given | {"out": out, "decoder": decoder, "device": device, **_gpus(gpus, default="1")}
        config = load_run(folder, overrides=settings or [], flags=flags)
        check_files(config)
        if not (folder.latents / "manifest.json").exists():
            remedy = f"`vinfinity resume {folder.path}` computes them"
            raise InputError("run", run, remedy, problem="has no final latents yet")
        with held_interrupts():
            from vinfinity.generate import decode_again
        summary = decode_again(config, folder)
        if summary is not None:
            print_summary(summary)


def _gpus(given: str | None, *, default: str | None = None) -> dict[str, str | None]:
    """The number of ranks: the one that was given, else the launcher's where there is one, else `default`."""
    by_torchrun = {"TORCHELASTIC_RUN_ID", "WORLD_SIZE"} & os.environ.keys()
    by_srun = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 0) > 1
    if given is None and (by_torchrun or by_srun):
        return {"gpus": "null"}
    return {"gpus": given or default}
