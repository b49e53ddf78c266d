"""What `evaluate` and `compare` print: tables and sentences. Names and settings are never read as markup."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from rich.table import Table

from vinfinity.errors import escaped
from vinfinity.evaluation.compare import Comparison
from vinfinity.evaluation.figures import FIGURES, Figure
from vinfinity.evaluation.result import Evaluation, short_names
from vinfinity.evaluation.statistics import Paired
from vinfinity.system.numbers import shown_rate

# videos that are shown side by side; more of them are shown one below the other, with fewer figures
MOST_COLUMNS = 4
# the figures of videos that stand below each other, with short titles
HEADLINES = {
    "motion.length": "motion",
    "flicker.pulsing": "pulsing",
    "seams.worst": "seam",
    "cuts.count": "cuts",
    "drift.largest": "drift",
    "repetition.strength": "repeats",
    "frozen.share": "frozen",
}
# p-values below this are bold
SIGNIFICANT = 0.05
# a loop is open if its ends differ by this many times the usual difference
OPEN_LOOP = 1.5
# trends of at least this size, in the units of their curves
WORTH_A_NOTE = {"sharpness": 1.0, "brightness": 5.0, "saturation": 3.0}


def figure_rows(evaluations: Sequence[Evaluation]) -> list[tuple[Figure, list[float | None]]]:
    """Return the figures that any of the videos has, in the order of their declaration, with the value of each video.

    A figure that still pictures would win is shown with one of motion, see Figure.beside.
    """
    rows: list[tuple[Figure, list[float | None]]] = []
    for figure in FIGURES.values():
        values = [evaluation.figures.get(figure.name) for evaluation in evaluations]
        if any(value is not None for value in values):
            rows.append((figure, values))
    return rows


def shown(figure: Figure, evaluation: Evaluation) -> str:
    """Return a value as text, with the motion if the figure has one: `0.9951 at 1.2 px/frame`."""
    text = figure.shown(evaluation.figures.get(figure.name))
    if figure.beside is None or evaluation.figures.get(figure.name) is None:
        return text
    motion = FIGURES[figure.beside]
    return f"{text} at {motion.shown(evaluation.figures[figure.beside])}"


def length_of(evaluation: Evaluation) -> str:
    """`96 frames of 512x320, 12.0 s at 8 fps`."""
    width, height = evaluation.size
    seconds = float(evaluation.frames / Fraction(evaluation.fps))
    rate = shown_rate(evaluation.fps)
    return f"{evaluation.frames} frames of {width}x{height}, {seconds:.1f} s at {rate} fps"


def tables(evaluations: Sequence[Evaluation], *, beyond: Mapping[int, Sequence[str]]) -> list[Table]:
    """Return the figures as tables. beyond: complaints about limits, by the number of the video."""
    names = short_names(evaluations)
    if len(evaluations) > MOST_COLUMNS:
        return [_by_video(evaluations, names, beyond)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for figure, _ in figure_rows(evaluations):
        table.add_row(figure.title, *(shown(figure, evaluation) for evaluation in evaluations))
    return [table]


def _by_video(
    evaluations: Sequence[Evaluation], names: Sequence[str], beyond: Mapping[int, Sequence[str]]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("video", overflow="fold")
    for title in HEADLINES.values():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("limits")
    for number, (name, evaluation) in enumerate(zip(names, evaluations, strict=True)):
        values = [FIGURES[figure].number(evaluation.figures.get(figure)) for figure in HEADLINES]
        table.add_row(name, *values, "beyond" if beyond.get(number) else "")
    return table


def kinds_of(evaluation: Evaluation) -> dict[int, str]:
    """Return what lies at each border: `rank`, `join, prompt`."""
    kinds: dict[int, list[str]] = {}
    for border in evaluation.subject.borders:
        kinds.setdefault(border.frame, []).append(border.kind)
    return {frame: ", ".join(names) for frame, names in kinds.items()}


def notes(evaluation: Evaluation) -> list[str]:
    """Sentences on what stands out, with the time of each: seams, cuts, frozen spans."""
    rate = float(evaluation.fps)
    lines = []
    if evaluation.seams is not None:
        kinds = kinds_of(evaluation)
        for seam in evaluation.seams.seams:
            if seam.percentile >= 99.5 and (seam.ratio or 0) >= 1.5:
                lines.append(
                    f"seam at frame {seam.frame} ({seam.frame / rate:.1f} s, {kinds[seam.frame]}): "
                    f"{seam.ratio:.1f} times the usual difference"
                )
    closing = evaluation.figures["closing.ratio"]
    if evaluation.subject.loop and closing is not None and closing >= OPEN_LOOP:
        lines.append(f"the loop does not close: its ends differ by {closing:.1f} times the usual difference")
    lines += [f"cut at frame {cut} ({cut / rate:.1f} s)" for cut in evaluation.cuts]
    lines += [
        f"frozen from frame {span.start} to {span.stop - 1} ({len(span) / rate:.1f} s)"
        for span in evaluation.frozen
    ]
    for name, least in WORTH_A_NOTE.items():
        trend = evaluation.trends.get(name)
        if trend is not None and trend.steady and abs(trend.rise) >= least:
            lines.append(
                f"{name} changes steadily: {trend.rise:+.1f} over the video "
                f"(95 %: {trend.low:+.1f} to {trend.high:+.1f})"
            )
    return lines


def pairs_of(comparison: Comparison) -> str:
    """`7 pairs of videos`; `6 of 7 pairs of videos` where some are left out."""
    count, left = len(comparison.pairs), len(comparison.left_out)
    of = f" of {count + left}" if left else ""
    return f"{count}{of} {'pair' if count + left == 1 else 'pairs'} of videos"


def left_out_rows(left_out: Mapping[str, str], unpaired: Sequence[str] = ()) -> list[str]:
    """Return a line for each video or pair that is left out. left_out: reasons by name. unpaired: see Comparison."""
    lines = [f"left out: {escaped(name)}: {reason}" for name, reason in left_out.items()]
    return lines + [f"left out: {escaped(name)}: has no counterpart" for name in unpaired]


def test_table(comparison: Comparison, number: int) -> Table:
    """Return the paired tests of a batch against the first one. number: the batch's, from 1."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", comparison.names[0], comparison.names[number], "difference", "95 %", "p"):
        table.add_column(title, justify="left" if not title else "right", overflow="fold")
    for figure, test, cells in tested_rows(comparison, number):
        table.add_row(figure.title, *cells, style="bold" if test.p < SIGNIFICANT else None)
    return table


def tested_rows(comparison: Comparison, number: int) -> list[tuple[Figure, Paired, list[str]]]:
    """Return the rows of that table: a figure, its test, and as text both means, the difference, its interval and p."""
    rows = []
    for name, test in comparison.tests[number - 1].items():
        figure = FIGURES[name]
        means = [_mean(group, name) for group in (comparison.groups[0], comparison.groups[number])]
        interval = f"{figure.number(test.low)} to {figure.number(test.high)}"
        cells = [*map(figure.shown, means), figure.number(test.mean), interval, f"{test.p:.4f}"]
        rows.append((figure, test, cells))
    return rows


def fidelity_rows(comparison: Comparison) -> list[str]:
    """Return a sentence on PSNR and SSIM for each video but the first, or each batch."""
    first, lines = comparison.names[0], []
    for name, group in zip(comparison.names[1:], comparison.fidelity, strict=True):
        known = [one for one in group if one is not None]
        if not known:
            lines.append(f"{name}: no PSNR and SSIM to {first}, since lengths differ")
            continue
        equal = sum(one.psnr == float("inf") for one in known)
        finite = [one.psnr for one in known if one.psnr != float("inf")]
        similar = [one.ssim for one in known if one.ssim is not None]
        if not finite:
            lines.append(f"{name}: identical to {first}")
            continue
        text = f"{name}: PSNR {sum(finite) / len(finite):.2f} dB"
        text += f", SSIM {sum(similar) / len(similar):.4f}" if similar else ""
        same = f"; {equal} of {len(known)} videos {'is' if equal == 1 else 'are'} identical" if equal else ""
        lines.append(f"{text} to {first}{same}")
    return lines


def settings_table(comparison: Comparison) -> Table | None:
    """Return the settings in which runs differ; None if they do not."""
    differing = comparison.differing_settings()
    if not differing:
        return None
    table = Table("setting", *comparison.names, box=None, pad_edge=False, header_style="bold")
    for key, values in differing.items():
        table.add_row(key, *values)
    return table


def _mean(group: Sequence[Evaluation], name: str) -> float | None:
    values = [value for one in group if (value := one.figures.get(name)) is not None]
    return sum(values) / len(values) if values else None
