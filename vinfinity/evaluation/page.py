"""The report: one self-contained HTML file with the videos, curves, matrices, tables and settings."""

import base64
import html
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinfinity import __version__
from vinfinity.errors import escaped
from vinfinity.evaluation.compare import Comparison
from vinfinity.evaluation.figures import CURVES
from vinfinity.evaluation.preview import Preview
from vinfinity.evaluation.report import figure_rows, kinds_of, left_out_rows, length_of, notes, shown
from vinfinity.evaluation.result import Evaluation, rounded, short_names
from vinfinity.system.files import write_whole

PARTS = Path(__file__).parent / "html"
# digits of numbers in curves: enough to draw them
DIGITS = 4


def write_page(
    path: Path,
    evaluations: Sequence[Evaluation],
    previews: Sequence[Preview],
    *,
    comparison: Comparison | None = None,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write the report of one or several videos.

    previews: one for each video. left_out: what is wrong with the other videos, by name.

    Raises OutputError.
    """
    names = short_names(evaluations)
    title = names[0] if len(names) == 1 else f"{len(names)} videos"
    videos = [
        _video(name, evaluation, preview, beside=path.parent)
        for name, evaluation, preview in zip(names, evaluations, previews, strict=True)
    ]
    data = {
        "videos": videos,
        "curves": [
            {"name": name, "title": title, "unit": unit}
            for name, (title, unit) in CURVES.items()
            if any(name in evaluation.curves for evaluation in evaluations)
        ],
        "figures": [
            {
                "title": figure.title,
                "meaning": figure.meaning,
                "values": [shown(figure, evaluation) for evaluation in evaluations],
            }
            for figure, _ in figure_rows(evaluations)
        ],
        "differing": {} if comparison is None else comparison.differing_settings(),
        "fidelity": [] if comparison is None else _fidelity(comparison),
        "left_out": left_out_rows(left_out or {}),
        "version": __version__,
    }
    copies = "\n".join(
        f'<script type="text/plain" id="video-{number}">{preview.video}</script>'
        for number, preview in enumerate(previews)
    )
    write_filled(path, "page", title=title, data=data, videos=copies)


def write_filled(path: Path, name: str, *, title: str, data: object, videos: str = "") -> None:
    """Write a page with the content of NAME.html, the script NAME.js, and data. Raises OutputError."""

    def part(file: str) -> str:
        return (PARTS / file).read_text(encoding="utf-8")

    page = part("frame.html").replace("<!-- body -->", part(f"{name}.html"))
    fill = {
        "title": html.escape(title),
        "style": part("page.css"),
        "script": part("common.js") + part(f"{name}.js"),
        "videos": videos,
        "data": script_json(data),
    }
    # texts of users come in last: nothing is looked for in them
    for key in ("style", "script", "title", "videos", "data"):
        page = page.replace(f"<!-- {key} -->", fill[key])
    write_whole(path, page)


def script_json(value: object) -> str:
    """JSON in ASCII that cannot end the script element it stands in, whatever texts and names of files are in it."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def link_to(video: Path | None, folder: Path) -> str | None:
    """Return the address of a video for a page in a folder. Names need not be UTF-8. None for frames in memory."""
    return None if video is None else urllib.parse.quote(os.fsencode(os.path.relpath(video, folder)))


def _video(name: str, evaluation: Evaluation, preview: Preview, *, beside: Path) -> dict[str, Any]:
    subject = evaluation.subject
    kinds = kinds_of(evaluation)
    seams = () if evaluation.seams is None else evaluation.seams.seams
    return {
        "name": name,
        "path": escaped(evaluation.name),
        "link": link_to(subject.path, beside),
        "about": length_of(evaluation),
        "frames": evaluation.frames,
        "size": list(preview.size),
        "fps": float(evaluation.fps),
        "borders": [{"frame": frame, "kind": kind} for frame, kind in kinds.items()],
        "prompts": [{"frame": prompt.start, "text": prompt.text} for prompt in subject.prompts],
        "cuts": list(evaluation.cuts),
        "frozen": [[span.start, span.stop] for span in evaluation.frozen],
        "seams": [
            {
                "frame": seam.frame,
                "kind": kinds.get(seam.frame, ""),
                "ratio": rounded(seam.ratio),
                "local": rounded(seam.local_ratio),
                "percentile": rounded(seam.percentile),
            }
            for seam in seams
        ],
        "notes": notes(evaluation),
        "curves": {
            name: [None if rounded(value) is None else round(float(value), DIGITS) for value in curve]
            for name, curve in evaluation.curves.items()
        },
        "matrix": {
            "side": len(evaluation.matrix),
            "bytes": base64.b64encode(evaluation.matrix.tobytes()).decode(),
        },
        "thumbnails": [{"frame": frame, "src": src} for frame, src in preview.thumbnails.items()],
        "settings": dict(subject.settings),
        "provenance": dict(subject.provenance),
    }


def _fidelity(comparison: Comparison) -> list[Mapping[str, str] | None]:
    """PSNR and SSIM of each video but the first to the first, as text."""
    rows: list[Mapping[str, str] | None] = []
    for group in comparison.fidelity:
        one = group[0]
        if one is None:
            rows.append(None)
            continue
        equal = one.psnr == float("inf")
        ssim = "-" if one.ssim is None else f"{one.ssim:.4f}"
        rows.append({"psnr": "identical" if equal else f"{one.psnr:.2f} dB", "ssim": ssim})
    return rows
