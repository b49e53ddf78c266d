"""Render clips of the world and keep their latents, scenes and start times in one file."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import world
from common import WORK, Log, announce, autocast, picture_height, render_all, save_checkpoint, to_unit
from diffusers import AutoencoderKL

FRAMES = 24


@torch.no_grad()
def main() -> None:
    """Render, encode, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--clips", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--name", default="latents")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that render; 0: this one")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    announce(args.work)
    vae = AutoencoderKL.from_pretrained(args.work / "vae").eval().to(args.device)
    rng = np.random.default_rng(args.seed)
    log = Log(args.work / f"{args.name}.jsonl")
    scenes = [world.sample_scene(rng) for _ in range(args.clips)]
    jobs = ((scene, np.arange(FRAMES)) for scene in scenes)
    latents = []
    for i, clip in enumerate(render_all(jobs, workers=args.workers, height=picture_height(vae))):
        with autocast(args.device):
            z = vae.encode(to_unit(clip).to(args.device)).latent_dist.mode()
        latents.append((z.float() * vae.config.scaling_factor).half().cpu())
        if i % 250 == 0 or i + 1 == args.clips:
            log.write(clips=i + 1)
    save_checkpoint(
        args.work / f"{args.name}.pt",
        {"latents": torch.stack(latents), "scenes": [asdict(s) for s in scenes]},
    )


if __name__ == "__main__":
    main()
