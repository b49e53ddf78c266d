"""Draw every figure and plot, and refresh the tables of the study and the README's table of files.

python -m scripts.figures            # write them
python -m scripts.figures --check    # write nothing; exit code 1 if a committed file is out of date
"""

import argparse
import sys
from pathlib import Path

from scripts.figures import (
    attention_scopes,
    checkpoints,
    clip_parallelism,
    exchange,
    pipeline,
    plots,
    reading_order,
    study,
    study_plot,
    training,
)

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
FIGURES = {
    "clip-parallelism.svg": clip_parallelism.figure,
    "attention-scopes.svg": attention_scopes.figure,
    "exchange.svg": exchange.figure,
    "pipeline.svg": pipeline.figure,
    "checkpoints.svg": checkpoints.figure,
    "unet-time.svg": plots.unet_time,
    "memory.svg": plots.memory,
    "scaling.svg": plots.scaling,
    "reuse.svg": plots.reuse,
    "mini-training.svg": training.figure,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed files, and write nothing"
    )
    check = parser.parse_args().check
    wanted = {IMAGES / name: draw() for name, draw in FIGURES.items()}
    lines = study.read_rows(study.DATA)
    wanted |= {IMAGES / group.image: study_plot.plot(group) for group in study.groups(lines) if group.plotted}
    wanted[study.PAGE] = study.page(
        study.PAGE.read_text(encoding="utf-8"), lines, study.read_rows(study.SCHEDULES)
    )
    wanted[README] = reading_order.refreshed(README.read_text(encoding="utf-8"))
    stale = [
        path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)}: {'is out of date; run python -m scripts.figures' if check else 'written'}"
        )
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
