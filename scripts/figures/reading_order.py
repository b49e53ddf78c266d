"""The README's table of the files to read first, with their numbers of lines."""

from pathlib import Path

from scripts.figures import marked

ROOT = Path(__file__).parents[2]
FILES = (
    ("vinfinity/run.py", "a run, from configuration to MP4"),
    ("vinfinity/denoise/loop.py", "the denoising loop: predict, vote, guide, step"),
    ("vinfinity/parallel/shards.py", "frames and ranks as arithmetic: clips, anchors, routes"),
    ("vinfinity/parallel/scopes.py", "dual-scope attention: who attends to whom, with which bias"),
    ("vinfinity/models/unet3d/temporal.py", "the temporal layers, the only ones that exchange frames"),
    ("vinfinity/parallel/exchange.py", "how frames and statistics travel between ranks"),
    ("vinfinity/denoise/samplers.py", "from noise to latents, step by step"),
    ("vinfinity/media/video.py", "from latents to MP4"),
)


def table() -> str:
    """Return the table, without its markers. Lines are rounded to tens."""
    rows = ["| file | lines | what it shows |", "|---|---|---|"]
    for name, what in FILES:
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        rows.append(f"| [{name}]({name}) | {max(10, round(lines, -1))} | {what} |")
    return "\n".join(rows)


def refreshed(text: str) -> str:
    """Return a text with the table between its markers brought up to date. Raises ValueError if they are missing."""
    return marked.refreshed(text, "reading order", table())
