"""A UNet call of ours against one of diffusers' UNet3DConditionModel: same weights, inputs and threads, in turn.

    python benchmarks/rivals/unet.py [--model mini|medium|FOLDER] [--frames 16] [--dtype fp32] [--threads 1]
        [--rounds 9]

It stands here since the package never imports diffusers (docs/decisions/0007). Plain attention over all frames on both
sides, and both guidance branches in one batch.
"""

import argparse

import torch
from diffusers import UNet3DConditionModel

from vinfinity.bench.timing import time_in_turn
from vinfinity.bench.unet import inputs, our_call, shape_of
from vinfinity.weights.dtypes import DTYPES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dtype, shape = DTYPES[given.dtype], shape_of(given.model, frames=given.frames)
    ours = shape.build(dtype, given.device)
    theirs = UNet3DConditionModel(
        **{
            name: getattr(ours.config, name)
            for name in (
                "block_out_channels",
                "layers_per_block",
                "norm_num_groups",
                "cross_attention_dim",
                "attention_head_dim",
                "down_block_types",
                "up_block_types",
            )
        }
    )
    theirs.load_state_dict({name: tensor.contiguous() for name, tensor in ours.state_dict().items()})
    theirs = theirs.to(given.device, dtype).eval()
    x, t, text = inputs(shape, ours.config, dtype=dtype, device=given.device)

    def their_call() -> torch.Tensor:
        with torch.inference_mode():
            return theirs(x, t, text).sample

    our = our_call(shape, ours, dtype=dtype, device=given.device)
    difference = ((our() - their_call()).abs().max() / their_call().abs().max()).item()
    times = time_in_turn({"vinfinity": our, "diffusers": their_call}, rounds=given.rounds)
    print(f"{shape.title}, {given.dtype}, {given.threads} threads: largest difference {difference:.1e}")
    print(f"vinfinity {times.median('vinfinity'):.3f} s, diffusers {times.median('diffusers'):.3f} s")
    print(f"ratio {times.ratio('vinfinity', 'diffusers')}")


if __name__ == "__main__":
    main()
