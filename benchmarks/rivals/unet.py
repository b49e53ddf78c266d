"""Times a UNet call of ours against one of diffusers: same weights, inputs and threads, in turn.

    python benchmarks/rivals/unet.py [--model mini|medium|FOLDER] [--frames 16] [--dtype fp32] [--threads 1]
        [--rounds 9] [--device cpu] [--out FILE]

Both use plain attention over all frames, and both guidance branches in one batch. It is not part of the package, which
never imports diffusers (docs/decisions/0007). --out writes the seconds of each call as JSON.
"""

import argparse
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel

from vinfinity.bench.denoiser import call_inputs, timed_call
from vinfinity.bench.report import write_json
from vinfinity.bench.subjects import find_subject
from vinfinity.bench.timing import time_in_turn
from vinfinity.models.unet3d.unet import UNet
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import TIMESTEP
from vinfinity.weights.dtypes import DTYPES

COMMON_SETTINGS = (
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "attention_head_dim",
    "down_block_types",
    "up_block_types",
)


def rival_of(unet: UNet) -> UNet3DConditionModel:
    """diffusers' UNet with the same weights, on the same device and of the same type."""
    rival = UNet3DConditionModel(**{name: getattr(unet.config, name) for name in COMMON_SETTINGS})
    rival.load_state_dict({name: tensor.contiguous() for name, tensor in unet.state_dict().items()})
    weight = unet.conv_in.weight
    return rival.to(weight.device, weight.dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini", help="name or folder, or medium [%(default)s]")
    parser.add_argument("--frames", type=int, default=16, help="frames in a call [%(default)s]")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU [%(default)s]")
    parser.add_argument("--rounds", type=int, default=9, help="calls of each kind to time [%(default)s]")
    parser.add_argument("--device", default="cpu", help="[%(default)s]")
    parser.add_argument("--out", type=Path, help="write the figures to this .json file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = find_subject(options.model)
    ours = subject.load(DTYPES[options.dtype], options.device)
    if not isinstance(ours, UNet):
        parser.error(f"--model: {options.model} has no UNet")
    rival = rival_of(ours)
    shape = subject.call_shape(ours, shards=FrameShards(options.frames))
    x, text = call_inputs(shape, device=options.device)
    t = torch.full((1,), TIMESTEP, device=options.device)

    def rival_call() -> torch.Tensor:
        with torch.inference_mode():
            return rival(x.expand(len(text), *x.shape[1:]), t, text).sample

    our_call = timed_call(subject, ours, frames=options.frames)
    difference = ((our_call() - rival_call()).abs().max() / rival_call().abs().max()).item()
    times = time_in_turn({"vinfinity": our_call, "diffusers": rival_call}, rounds=options.rounds)
    title = f"{subject.title(options.frames)}, {options.dtype}, {options.threads} threads"
    print(f"{title}: largest relative difference {difference:.1e}")
    print(f"vinfinity {times.median('vinfinity'):.3f} s, diffusers {times.median('diffusers'):.3f} s")
    print(f"ratio {times.ratio('vinfinity', 'diffusers')}")
    if options.out is not None:
        write_json(options.out, {"shape": title, "difference": difference, "seconds": dict(times.seconds)})


if __name__ == "__main__":
    main()
