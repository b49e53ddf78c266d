"""Evaluate the model: does a generated clip show what its prompt says, by the world's recogniser?

Prompts are random captions of the grammar, one seed each. Shares right of background, colour, kind and
motion, the share of frames that keep one subject in one colour, and contact sheets. `direct` is a plain
loop with diffusers' network and scheduler (16 frames or so at once); evaluate_long.py goes through the
package.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import world
from common import WORK, autocast, to_frames
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, UNet3DConditionModel
from recognise import mistakes, read_clip, shares
from temporal import build_scheduler, prepare
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


class Model:
    """The four parts of the model, from the export or from a training run, in float32."""

    def __init__(self, run: Path, *, vae: Path, tokenizer: Path) -> None:
        self.unet = UNet3DConditionModel.from_pretrained(run / "unet", torch_dtype=torch.float32).eval()
        self.encoder = CLIPTextModel.from_pretrained(run / "text_encoder", torch_dtype=torch.float32).eval()
        self.vae = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer)

    def states(self, prompts: list[str]) -> Tensor:
        """Text states (b, 16, c)."""
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.encoder(ids).last_hidden_state


def make_scheduler(sampler: str) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """Return the scheduler of a sampler's name."""
    config = build_scheduler().config
    if sampler == "ddim":
        return DDIMScheduler.from_config(config, set_alpha_to_one=True)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type=sampler, solver_order=2)


@torch.no_grad()
def denoise(
    model: Model,
    prompts: list[str],
    x: Tensor,
    *,
    steps: int,
    guidance: float,
    generator: torch.Generator,
    rescale: float = 0.0,
    sampler: str = "sde-dpmsolver++",
    interval: tuple[int, int] = (0, 1000),
    power: float = 1.0,
    start: int = 999,
) -> Tensor:
    """Latents (b, 4, f, h, w) denoised from timestep `start` on, with `steps` steps on the whole schedule.

    interval: the timesteps [low, high) at which guidance applies; elsewhere its weight is 1, which costs half.
    power: above 1, steps lie closer at high noise; 1 is even spacing.
    """
    states = torch.cat([model.states(prompts), model.states([""] * len(prompts))])
    scheduler = make_scheduler(sampler)
    if power == 1:
        scheduler.set_timesteps(steps)
    else:
        shares = 1 - (torch.arange(steps) / steps) ** power
        scheduler.set_timesteps(timesteps=(1000 * shares - 1).round().long().tolist())
    timesteps = scheduler.timesteps
    first = int((timesteps > start).sum())
    scheduler.set_begin_index(first)
    for t in timesteps[first:]:
        guided = guidance != 1 and interval[0] <= t < interval[1]
        with autocast():
            if guided:
                with_text, without = model.unet(torch.cat([x, x]), t, states).sample.float().chunk(2)
            else:
                v = model.unet(x, t, states[: len(prompts)]).sample.float()
        if guided:
            v = without + guidance * (with_text - without)
        if guided and rescale > 0:
            ratio = with_text.std((1, 2, 3, 4), keepdim=True) / v.std((1, 2, 3, 4), keepdim=True)
            v = v * (rescale * ratio + 1 - rescale)
        x = scheduler.step(v, t, x, generator=generator, return_dict=False)[0]
    return x


@torch.no_grad()
def sample(
    model: Model,
    prompts: list[str],
    *,
    frames: int,
    steps: int,
    guidance: float,
    rescale: float,
    sampler: str,
    seed: int,
    interval: tuple[int, int] = (0, 1000),
    power: float = 1.0,
) -> list[world.Clip]:
    """One clip for each prompt, uint8 (f, h, w, 3); temporal layers are bypassed if frames is 1."""
    prepare(model.unet, temporal=frames > 1)
    shape = (len(prompts), 4, frames, world.HEIGHT // 8, world.WIDTH // 8)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    latents = denoise(
        model,
        prompts,
        x,
        steps=steps,
        guidance=guidance,
        generator=generator,
        rescale=rescale,
        sampler=sampler,
        interval=interval,
        power=power,
    )
    with autocast():
        return [to_frames(model.vae.decode(clip.transpose(0, 1)).sample) for clip in latents]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, read, print and write figures and sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--run", help="a training run; default: the exported model")
    parser.add_argument("--vae", default="vae", help="the folder of the autoencoder [%(default)s]")
    parser.add_argument("--assets", type=Path, default=Path("vinfinity/assets/mini"))
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first prompt, to share the work"
    )
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--rescale", type=float, default=0.0)
    parser.add_argument(
        "--interval", type=int, nargs=2, default=(0, 1000), help="timesteps at which guidance applies"
    )
    parser.add_argument("--power", type=float, default=1.0, help="above 1: steps closer at high noise")
    parser.add_argument("--sampler", default="sde-dpmsolver++")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="evaluation", help="names the sheet and the figures")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    parts = args.work if args.run else args.assets
    model = Model(
        parts / args.run if args.run else parts, vae=parts / args.vae, tokenizer=parts / "tokenizer"
    )
    rng = np.random.default_rng(4242)
    scenes = [world.sample_scene(rng) for _ in range(args.first + args.clips)][args.first :]
    clips: list[world.Clip] = []
    began = time.time()
    for start in range(0, args.clips, args.batch):
        prompts = [world.caption(scene) for scene in scenes[start : start + args.batch]]
        clips += sample(
            model,
            prompts,
            frames=args.frames,
            steps=args.steps,
            guidance=args.guidance,
            rescale=args.rescale,
            sampler=args.sampler,
            seed=args.seed + args.first + start,
            interval=(args.interval[0], args.interval[1]),
            power=args.power,
        )
    seconds = (time.time() - began) / args.clips
    readings = [read_clip(clip) for clip in clips]
    figures = shares(readings, scenes)
    options = {
        key: getattr(args, key)
        for key in ("frames", "steps", "guidance", "rescale", "interval", "power", "sampler", "seed")
    }
    print(json.dumps(options), f"{seconds:.2f} s a clip")
    print(json.dumps(figures))
    for name, count in mistakes(readings, scenes).items():
        print(name, dict(count.most_common(12)))
    pictures = args.work / "pictures"
    if args.frames == 1:
        flat = [clip[0] for clip in clips]
        world.contact_sheet([flat[i : i + 8] for i in range(0, len(flat), 8)], pictures / f"{args.name}.png")
    else:
        rows = [list(clip[:: max(1, args.frames // 8)]) for clip in clips[:16]]
        world.contact_sheet(rows, pictures / f"{args.name}.png")
        for scene in scenes[:16]:
            print(" ", world.caption(scene))
    table = [{"prompt": world.caption(s)} | asdict(r) for s, r in zip(scenes, readings, strict=True)]
    record = {"options": options, "figures": figures, "seconds_a_clip": seconds, "clips": table}
    (args.work / f"{args.name}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
