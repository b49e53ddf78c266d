"""Commands that measure videos and compare them."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from vinfinity.cli.measured import print_comparison, print_evaluations
from vinfinity.cli.options import number
from vinfinity.cli.output import Debug, import_engine, reported
from vinfinity.config import Device
from vinfinity.errors import InputError
from vinfinity.system.folders import expanded
from vinfinity.system.numbers import read_rate
from vinfinity.system.output import check_output

Videos = Annotated[
    list[Path],
    typer.Argument(
        metavar="VIDEO|RUN...",
        help="Video files, run folders NAME.run, or folders of PNG.",
        show_default=False,
    ),
]
Clip = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Weights of CLIP: adds VBench's background consistency and agreement with the prompt.",
        show_default="none",
    ),
]
Dino = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Weights of DINO: adds VBench's subject consistency.", show_default="none"
    ),
]
Where = Annotated[
    Device,
    typer.Option(
        "--device", metavar="auto|cuda|cpu", help="Device of CLIP and DINO; needs --clip or --dino."
    ),
]
PromptText = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Text for CLIP to compare the frames with; needs --clip.",
        show_default="the run's prompts",
    ),
]
Borders = Annotated[
    list[str] | None,
    typer.Option(
        "--border",
        metavar="FRAME",
        help="Look for a seam before this frame, in addition to the run's own borders. Can be repeated.",
        show_default="none",
    ),
]
Every = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Look for seams every N frames, such as where another program's windows meet.",
        show_default="none",
        parser=number(int),
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Frame rate of PNG folders that have no run folder beside them.",
        show_default="24",
        parser=number(float, least=0.1, most=1000),
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print all figures and curves as JSON.")]


def limit(name: str, help: str) -> typer.models.OptionInfo:
    """Return the option of a limit."""
    return typer.Option(name, metavar="X", help=help, show_default="none", parser=number(float, least=0))


MaxDrift = Annotated[
    float | None,
    limit("--max-drift", "Largest drift of sharpness, brightness, saturation or colour, in percent."),
]
MaxSeam = Annotated[
    float | None, limit("--max-seam", "Highest ratio of the difference at a border to that elsewhere.")
]
MaxPulsing = Annotated[float | None, limit("--max-pulsing", "Maximum pulsing of colours, in levels of 255.")]
MaxCuts = Annotated[float | None, limit("--max-cuts", "Largest number of cuts that no prompt asks for.")]
MaxRepetition = Annotated[float | None, limit("--max-repetition", "Highest autocorrelation at a period.")]
MaxFrozen = Annotated[float | None, limit("--max-frozen", "Largest frozen part of the video, in percent.")]
MinMotion = Annotated[float | None, limit("--min-motion", "Minimum mean motion, in pixels per frame.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="FIGURE<=X",
        help="Limit on any figure by its name in --json, such as 'drift.brightness<=3'. Can be repeated.",
        show_default="none",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html",
        help="Write a self-contained HTML report with the videos (or pairs), curves and tables.",
        show_default="none",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing report; needs --report.")]


def evaluate(
    context: typer.Context,
    videos: Videos,
    clip: Clip = None,
    dino: Dino = None,
    device: Where = "auto",
    prompt: PromptText = None,
    border: Borders = None,
    every: Every = None,
    fps: Fps = None,
    max_drift: MaxDrift = None,
    max_seam: MaxSeam = None,
    max_pulsing: MaxPulsing = None,
    max_cuts: MaxCuts = None,
    max_repetition: MaxRepetition = None,
    max_frozen: MaxFrozen = None,
    min_motion: MinMotion = None,
    limits: Limits = None,
    as_json: Json = False,
    report: Report = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Measure videos: motion, flicker, seams, cuts, drift, repetition, frozen spans.

    Needs no weights, no GPU, and little memory at any length. For a run, the borders of ranks, edits and prompts are
    known. Exits with code 7 if a video violates a limit, and with 4 if one of several videos cannot be measured.

    For example: vinfinity evaluate ball.run --max-drift 10 --min-motion 0.2
    """
    with reported(context, debug=debug):
        from vinfinity.evaluation.extras import check_extras
        from vinfinity.evaluation.limits import check_limits, collect_limits
        from vinfinity.evaluation.subject import find_subjects

        options = {
            "max_drift": max_drift,
            "max_seam": max_seam,
            "max_pulsing": max_pulsing,
            "max_cuts": max_cuts,
            "max_repetition": max_repetition,
            "max_frozen": max_frozen,
            "min_motion": min_motion,
        }
        allowed = collect_limits(options, limits or [])
        borders = [_frame(text) for text in border or []]
        page = _page(report, overwrite=overwrite)
        subjects, failures = find_subjects(videos, fps=_rate(fps), borders=borders, every=every)
        check_limits(
            allowed,
            subjects,
            clip=clip is not None,
            dino=dino is not None,
            prompt=prompt is not None,
        )
        check_extras()
        import_engine()
        from vinfinity.evaluation.api import measure_all
        from vinfinity.evaluation.page import write_page

        measured = measure_all(
            subjects,
            prompt=prompt,
            clip=clip,
            dino=dino,
            device=device,
            shows="nothing" if page is None else "videos",
            failures=failures if len(videos) > 1 else None,
        )
        if page is not None and measured.evaluations:
            left_out = {name: error.message for name, error in measured.failures.items()}
            write_page(page, measured.evaluations, measured.previews, left_out=left_out)
        print_evaluations(measured, allowed, as_json=as_json)


def compare(
    context: typer.Context,
    videos: Annotated[
        list[Path],
        typer.Argument(
            metavar="VIDEO|RUN|FOLDER...",
            help="Two or more video files or runs; or folders of videos with the same names, such as two batches.",
            show_default=False,
        ),
    ],
    clip: Clip = None,
    dino: Dino = None,
    device: Where = "auto",
    prompt: PromptText = None,
    border: Borders = None,
    every: Every = None,
    fps: Fps = None,
    as_json: Json = False,
    report: Report = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Compare videos with the first one: all figures of `evaluate`, PSNR and SSIM, and the settings that differ.

    PSNR and SSIM need videos of the same length. In folders, videos with the same name are paired, and a paired test
    tells for each figure whether the difference could be chance. Pairs with a damaged video are skipped; the exit code
    is then 4.

    For example: vinfinity compare local.run dual-scope.run --report scopes.html
    """
    with reported(context, debug=debug):
        from vinfinity.evaluation.extras import check_extras
        from vinfinity.evaluation.groups import find_groups

        borders = [_frame(text) for text in border or []]
        page = _page(report, overwrite=overwrite)
        groups = find_groups(
            [expanded(video, field="video") for video in videos],
            fps=_rate(fps),
            borders=borders,
            every=every,
        )
        check_extras()
        import_engine()
        from vinfinity.evaluation.api import compare_groups
        from vinfinity.evaluation.batch_page import write_batch_page
        from vinfinity.evaluation.page import write_page

        comparison, measured = compare_groups(
            groups, prompt=prompt, clip=clip, dino=dino, device=device, reported=page is not None
        )
        if page is not None and comparison.pairs:
            write_batch_page(page, comparison, measured.sheets)
        elif page is not None:
            write_page(page, comparison.evaluations, measured.previews, comparison=comparison)
        print_comparison(comparison, measured, as_json=as_json)


def _page(report: Path | None, *, overwrite: bool) -> Path | None:
    """Return the file of the report, if any. Raises InputError if it cannot be written."""
    if report is None:
        if overwrite:
            remedy = "add --report FILE, or remove it"
            raise InputError("--overwrite", overwrite, remedy, problem="has no effect without a report")
        return None
    path = expanded(report, field="--report")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError("--report", report, "use a name that ends in .html", problem="is not an HTML file")
    check_output("--report", path, overwrite=overwrite)
    return path


def _rate(fps: float | None) -> Fraction | None:
    return None if fps is None else read_rate(fps)


def _frame(text: str) -> int:
    if not text.isascii() or not text.isdigit() or (text[0] == "0" and text != "0"):
        raise InputError("--border", text, "use the number of a frame, such as 48", problem="is not a frame")
    return int(text)
