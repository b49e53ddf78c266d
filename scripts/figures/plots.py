"""Bar charts of measured figures, from the CSV files in docs/data."""

import csv
from dataclasses import dataclass
from pathlib import Path

from scripts.figures.svg import Drawing

DATA = Path(__file__).parents[2] / "docs" / "data"
WIDTH, LEFT, LABELS, ROW = 700.0, 32.0, 268.0, 34.0


@dataclass(frozen=True)
class Bar:
    """One bar of a chart. low, high: the range of repeated measurements, if there are several."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    style: str = "blue"


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a file in docs/data."""
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def chart(
    title: str, subtitle: str, bars: list[Bar], *, most: float, unit: str = "", mark: float | None = None
) -> str:
    """Horizontal bars with their values. most: the value at the right end. mark: where a dashed line stands."""
    top = 84.0
    d = Drawing(WIDTH, top + ROW * len(bars) + 18, title)
    d.text(LEFT, 36, title, "strong", size=17)
    d.text(LEFT, 58, subtitle, "muted", size=13)
    start, scale = LEFT + LABELS, (WIDTH - 2 * LEFT - LABELS - 74) / most
    for index, bar in enumerate(bars):
        y = top + index * ROW
        d.text(start - 12, y + 16, bar.label, size=13, anchor="end")
        d.rect(start, y, bar.value * scale, 22, bar.style, radius=3)
        if bar.low is not None and bar.high is not None:
            d.line(start + bar.low * scale, y + 11, start + bar.high * scale, y + 11, "outline")
            for end in (bar.low, bar.high):
                d.line(start + end * scale, y + 6, start + end * scale, y + 16, "outline")
        d.text(WIDTH - LEFT, y + 16, f"{bar.value:g}{unit}", size=13, anchor="end")
    if mark is not None:
        d.line(
            start + mark * scale,
            top - 10,
            start + mark * scale,
            top + ROW * len(bars) - 6,
            stroke_dasharray="4 4",
        )
    return d.svg()


def unet_time() -> str:
    """Time of a UNet call relative to diffusers'."""
    bars = [
        Bar(
            row["case"],
            float(row["ratio"]),
            low=float(row["low"]) if row["low"] else None,
            high=float(row["high"]) if row["high"] else None,
            style="blue" if "fp32" in row["case"] else "green",
        )
        for row in rows("unet-time.csv")
    ]
    return chart(
        "Time of a UNet call, relative to diffusers",
        "one thread of an AMD EPYC with AVX-512, median and range; the dashed line is diffusers (make bench-denoiser)",
        bars,
        most=1.15,
        mark=1.0,
    )


def memory() -> str:
    """Memory of a UNet call per frame of video."""
    bars = [
        Bar(row["case"], float(row["mb_per_frame"]), style="gray" if "diffusers" in row["case"] else "blue")
        for row in rows("memory.csv")
    ]
    return chart(
        "Memory per frame of video",
        "VideoCrafter2's UNet, 512x320, fp16, traced (make bench-memory, benchmarks/rivals/memory.py)",
        bars,
        most=108.5,
        unit=" MB",
    )


def scaling() -> str:
    """Efficiency of two ranks."""
    bars = [
        Bar(f"{int(row['frames']):,} frames", float(row["efficiency"]), style="orange")
        for row in rows("scaling.csv")
    ]
    return chart(
        "Efficiency of two ranks",
        "mini on two cores of an AMD EPYC, one thread per rank; 1 is twice as fast as one rank (make bench-scaling)",
        bars,
        most=1.05,
        mark=1.0,
    )


def reuse() -> str:
    """Speed-up by reuse of deep features, with the distance to the exact video in the labels."""
    bars = [
        Bar(f"{row['case']} ({row['psnr_db']} dB)", float(row["speedup"]), style="purple")
        for row in rows("reuse.csv")
    ]
    return chart(
        "Speed-up by feature reuse",
        "mini of 25 November 2026, 96 frames, 25 steps; in brackets the PSNR to the exact video",
        bars,
        most=2.4,
        mark=1.0,
    )
