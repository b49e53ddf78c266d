"""The results of benchmarks as rows of text, JSON and CSV."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # they import torch, which reports do not need
    from vinfinity.bench.decode import DecodingFigures
    from vinfinity.bench.exchange import Traffic
    from vinfinity.bench.memory import Footprint, ProcessCheck
    from vinfinity.bench.timing import Times
    from vinfinity.bench.whole import RunFigures

Rows = list[tuple[str, ...]]


def write_json(path: Path, figures: object) -> None:
    """Write figures, which may contain dataclasses, as JSON. The folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2, default=_as_json) + "\n", encoding="utf-8")


def _as_json(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_records(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    """Write records with the same keys as CSV if `path` ends in .csv, as JSON otherwise."""
    if path.suffix != ".csv":
        write_json(path, records)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)


# ---- vinfinity bench denoiser ----


def denoiser_table(measured: Sequence[tuple[str, Times]]) -> Rows:
    """Return rows of the times of each variant, as ratios to the first. measured: (title, times of each variant)."""
    rows: Rows = [("call", "seconds", "ratio")]
    for title, times in measured:
        first = next(iter(times.seconds))
        for name in times.seconds:
            ratio = "" if name == first else times.ratio(name, first)
            rows.append((f"{title}, {name}", f"{times.median(name):.3f}", ratio))
    return rows


def denoiser_json(measured: Sequence[tuple[str, Times]]) -> list[dict[str, Any]]:
    """Return rows of the times of each variant. measured: (title, times of each variant)."""
    return [{"shape": title, "seconds": dict(times.seconds)} for title, times in measured]


# ---- vinfinity bench scaling ----


def scaling_table(times: Times, *, ranks: int, frames: int) -> Rows:
    """Return rows with the efficiency: time on one rank / (time on all ranks * number of ranks)."""
    ratios = times.ratios("alone", "together")
    low, middle, high = (ratios[i] / ranks for i in (0, len(ratios) // 2, -1))
    return [
        ("video", f"{frames} frames, one call, both guidance branches"),
        ("one rank", f"{times.median('alone'):.3f} s"),
        (f"{ranks} ranks", f"{times.median('together'):.3f} s"),
        ("efficiency", f"{middle:.3f} ({low:.3f} to {high:.3f})"),
    ]


# ---- vinfinity bench e2e ----


def runs_table(runs: Sequence[RunFigures]) -> Rows:
    """Return rows of whole runs.

    Time per frame is also given relative to the first run; memory per frame is the slope from the run before.
    """
    rows: Rows = [
        (
            "frames",
            "denoising",
            "decoding",
            "per frame",
            "relative",
            "peak memory",
            "per additional frame",
        )
    ]
    for i, run in enumerate(runs):
        slope = ""
        if i:
            before = runs[i - 1]
            slope = f"{(run.peak - before.peak) / (run.frames - before.frames) / 1e3:.0f} kB"
        rows.append(
            (
                str(run.frames),
                f"{run.denoising:.1f} s",
                f"{run.decoding:.1f} s",
                f"{1000 * run.per_frame:.0f} ms",
                f"{run.per_frame / runs[0].per_frame:.3f}",
                f"{run.peak / 2**20:.0f} MiB",
                slope,
            )
        )
    return rows


# ---- vinfinity bench exchange ----


def traffic_table(traffic: Sequence[Traffic]) -> Rows:
    """Return a heading, and a row for each count."""
    rows: Rows = [
        ("ranks x frames", "waits", "messages", "sent", "with K and V", "ratio", "of attention alone")
    ]
    for count in traffic:
        rows.append(
            (
                f"{count.ranks} x {count.frames}",
                str(count.waits),
                str(count.messages),
                f"{count.bytes / 1e6:,.0f} MB",
                f"{count.bytes_with_key_values / 1e6:,.0f} MB",
                f"{count.bytes / count.bytes_with_key_values:.3f}",
                f"{count.attention_bytes / count.key_value_bytes:.3f}",
            )
        )
    return rows


def exchange_time_table(times: Times) -> Rows:
    """Return the medians, and their ratio with its range over the rounds."""
    rounds = len(times.seconds["exchanged"])
    return [
        ("with exchange", f"{1000 * times.median('exchanged'):.0f} ms, median of {rounds}"),
        ("without", f"{1000 * times.median('local'):.0f} ms"),
        ("ratio", times.ratio("exchanged", "local")),
    ]


def exchange_json(traffic: Sequence[Traffic], times: Times | None) -> dict[str, Any]:
    """Return rows of the exchange. times: None if nothing was timed."""
    return {"traffic": traffic} | ({} if times is None else {"seconds": dict(times.seconds)})


# ---- vinfinity bench memory ----


def memory_table(footprints: Sequence[Footprint]) -> Rows:
    """Return rows of memory: per additional frame, the slope from the row before if that has the same execution."""
    rows: Rows = [
        (
            "ranks x frames",
            "skips",
            "weights",
            "skip connections",
            "temporaries",
            "total",
            "on the host",
            "per additional frame",
        )
    ]
    for i, footprint in enumerate(footprints):
        memory, slope = footprint.memory, ""
        before = footprints[i - 1] if i else None
        if (
            before is not None
            and footprint.execution == before.execution
            and footprint.frames != before.frames
        ):
            more = (memory.working - before.memory.working) / (footprint.frames - before.frames)
            slope = f"{more / 1e6:.2f} MB"
        sizes = (memory.weights, memory.skips, memory.temporaries, memory.device, memory.host)
        rows.append(
            (
                f"{footprint.ranks} x {footprint.frames}",
                footprint.execution.skips,
                *(f"{size / 1e9:.2f} GB" for size in sizes),
                slope,
            )
        )
    return rows


def check_table(check: ProcessCheck) -> Rows:
    """Return the traced memory next to that of real processes."""
    h, w = check.latent
    return [
        ("small UNet, fp32", f"{check.frames} frames of {h}x{w} latents on the CPU"),
        ("traced", f"{check.traced / 1e6:.1f} MB"),
        ("resident", f"{check.resident / 1e6:.1f} MB; {check.kept / 1e6:.1f} MB with malloc's cache"),
        ("ratio", f"{check.ratio:.3f}"),
    ]


def memory_json(footprints: Sequence[Footprint], check: ProcessCheck | None) -> dict[str, Any]:
    """Return all figures of a memory benchmark. check: None if no process was measured."""
    figures: dict[str, Any] = {"traced": footprints}
    if check is not None:
        figures["check"] = asdict(check) | {"ratio": check.ratio}
    return figures


# ---- vinfinity bench decode ----


def decode_table(figures: DecodingFigures) -> Rows:
    """Return rows of median times of decoding, encoding and both at once, and of the process's memory."""
    width, height = figures.size
    blocks = figures.blocks
    tile = "" if blocks.tile is None else f", tiles of {blocks.tile}x{blocks.tile} latent positions"
    rows: Rows = [
        ("video", f"{figures.frames} frames of {width}x{height}"),
        ("decoder", f"{figures.decoder}, on {figures.device}"),
        ("blocks", f"{blocks.frames} frames at once{tile}, {blocks.bytes / 2**20:,.0f} MiB"),
    ]
    for name in ("decoding", "encoding", "together"):
        costs = [getattr(round_, name) for round_ in figures.rounds]
        seconds = statistics.median(cost.seconds for cost in costs)
        processor = statistics.median(cost.processor for cost in costs)
        per_frame = f"{1000 * seconds / figures.frames:.1f} ms per frame"
        rows.append((name, f"{seconds:.1f} s, {per_frame} ({processor:.1f} s of processor time)"))
    resident = [size / 2**20 for _, size in figures.resident]
    return [
        *rows,
        ("together / decoding", f"{figures.of_decoding:.3f}"),
        ("together / larger", f"{figures.of_larger:.3f}, {figures.cores} processor cores"),
        ("together / sum", f"{figures.of_sum:.3f}"),
        ("resident memory", f"{resident[0]:,.0f} MiB at the first block, {resident[-1]:,.0f} at the last"),
        ("growth", f"{figures.growth:+,.0f} bytes per frame over the last three quarters"),
    ]


def decode_json(figures: DecodingFigures) -> dict[str, Any]:
    """Return all figures, and those derived from them."""
    derived = ("of_decoding", "of_larger", "of_sum", "growth")
    return asdict(figures) | {name: getattr(figures, name) for name in derived}
