"""What a UNet call of diffusers holds at most, traced as `vinfinity bench memory` traces ours.

    python benchmarks/rivals/memory.py --frames 16 --frames 32 [--branches 2] [--json FILE]

It stands here since the package never imports diffusers (docs/decisions/0007). VideoCrafter2's shape, fp16, 512x320,
both guidance branches in one batch as its pipeline calls them, with its default fused attention.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel

from vinfinity.planning.meter import LiveBytes


def trace(frames: int, *, branches: int) -> int:
    """Bytes that one call makes and holds at most, weights left out."""
    with torch.device("meta"):
        unet = UNet3DConditionModel(attention_head_dim=64).half().eval().requires_grad_(False)
        x = torch.empty(branches, 4, frames, 40, 64, dtype=torch.float16)
        text = torch.empty(branches, 77, 1024, dtype=torch.float16)
        t = torch.empty(1)
    with torch.inference_mode(), LiveBytes() as live:
        unet(x, t, encoder_hidden_states=text)
    return live.peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, action="append", help="may be repeated [16 and 48]")
    parser.add_argument("--branches", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = {frames: trace(frames, branches=given.branches) for frames in given.frames or (16, 48)}
    before: tuple[int, int] | None = None
    for frames, held in figures.items():
        slope = (
            "" if before is None else f", {(held - before[1]) / (frames - before[0]) / 1e6:.1f} MB a frame"
        )
        print(f"diffusers, {frames} frames, {given.branches} branches: {held / 1e9:.2f} GB{slope}")
        before = (frames, held)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
