"""Traces the peak memory of a UNet call of diffusers, in the same way as `vinfinity bench memory` traces ours.

    python benchmarks/rivals/memory.py [--frames 16] [--frames 48] [--branches 2] [--out FILE]

VideoCrafter2's shape in fp16 at 512x320, with both guidance branches in one batch, as diffusers' pipeline calls it, and
its default fused attention. It is not part of the package, which never imports diffusers (docs/decisions/0007). --out
writes the figures as CSV or JSON.
"""

import argparse
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel

from vinfinity.bench.report import write_records
from vinfinity.planning.meter import LiveBytes


def trace(frames: int, *, branches: int) -> int:
    """Peak memory of one call in bytes, without the weights."""
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
    parser.add_argument(
        "--frames", type=int, action="append", help="frames in a call; may be repeated [16 and 48]"
    )
    parser.add_argument("--branches", type=int, default=2, help="guidance branches in a batch [%(default)s]")
    parser.add_argument("--out", type=Path, help="write the figures to this .csv or .json file")
    options = parser.parse_args()
    records: list[dict[str, int]] = []
    for frames in options.frames or (16, 48):
        peak, slope = trace(frames, branches=options.branches), ""
        if records:
            before = records[-1]
            per_frame = (peak - before["bytes"]) / (frames - before["frames"])
            slope = f", {per_frame / 1e6:.1f} MB per frame"
        print(f"diffusers, {frames} frames, {options.branches} branches: {peak / 1e9:.2f} GB{slope}")
        records.append({"frames": frames, "branches": options.branches, "bytes": peak})
    if options.out is not None:
        write_records(options.out, records)


if __name__ == "__main__":
    main()
