"""Find where the denoiser goes wrong: one noise level at a time, on true clips of the world.

Three tables. `predict`: a true clip is noised to a level and the clean clip predicted in one call; what does the
prediction show, by the recogniser? `captions`: the error of that prediction with the clip's own caption, with one
word of the caption exchanged, and without a caption; a level at which the wrong word is no worse is a level at which
the network ignores the word. `restart`: a true clip is noised to a level and sampled from there with its own caption;
an aspect that is right from a level downwards and wrong from above is decided between them.
"""

import argparse
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import world
from common import WORK, autocast, encode_clips, picture_height, to_frames
from evaluate import Model, denoise
from recognise import read_clip, right, shares
from temporal import build_scheduler, prepare
from torch import Tensor

LEVELS = (999, 960, 920, 880, 840, 800, 720, 640, 560, 480, 400, 320, 200, 80)
OTHER_MOTION = {"moving left": "moving right", "moving right": "moving left"}


def exchanged(scene: world.Scene, aspect: str) -> world.Scene:
    """Return the scene with one word exchanged: left for right in `motion`, the next word of the list elsewhere."""
    words: dict[str, tuple[str, ...]] = {
        "colour": tuple(world.COLOURS),
        "subject": world.SUBJECTS,
        "motion": world.MOTIONS,
        "background": tuple(world.BACKGROUNDS),
    }
    present = str(getattr(scene, aspect))
    known = words[aspect]
    following = known[(known.index(present) + 1) % len(known)]
    if aspect == "motion":
        following = OTHER_MOTION.get(present, following)
    return replace(scene, **{aspect: following})


def noised(clean: Tensor, level: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the clip (b, 4, f, h, w) at a level, the noise, and the share of signal (cumulative alpha)."""
    alpha = build_scheduler().alphas_cumprod[level]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, noise, alpha


@torch.no_grad()
def predict(model: Model, noisy: Tensor, level: int, alpha: Tensor, prompts: list[str]) -> Tensor:
    """Return the clean clip that the network sees in a noisy one."""
    with autocast():
        v = model.unet(noisy, torch.tensor(level), model.states(prompts)).sample.float()
    return alpha.sqrt() * noisy - (1 - alpha).sqrt() * v


@torch.no_grad()
def decode(model: Model, latents: Tensor) -> list[world.Clip]:
    """Pictures of latents (b, 4, f, h, w)."""
    with autocast():
        return [to_frames(model.vae.decode(clip.transpose(0, 1)).sample) for clip in latents]


def batches(count: int, size: int) -> list[slice]:
    """Slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def text_table(model: Model) -> dict[str, float]:
    """How far the text states move when one word changes, relative to their deviation over captions."""
    rng = np.random.default_rng(1)
    scenes = [world.sample_scene(rng) for _ in range(200)]
    with torch.no_grad():
        base = model.states([world.caption(scene) for scene in scenes])
        spread = (base - base.mean(0)).square().mean().sqrt()
        table = {}
        for aspect in ("colour", "subject", "motion", "background"):
            some = [s for s in scenes if aspect != "motion" or s.motion in OTHER_MOTION]
            one = model.states([world.caption(scene) for scene in some])
            two = model.states([world.caption(exchanged(scene, aspect)) for scene in some])
            name = "left for right" if aspect == "motion" else aspect
            table[name] = float((one - two).square().mean().sqrt() / spread)
    return table


def main() -> None:
    """Print the tables and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--assets", type=Path, default=Path("vinfinity/assets/mini"))
    parser.add_argument("--run", help="a training run; default: the exported model")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--restart", type=int, nargs="*", default=(960, 920, 880, 800, 720, 600))
    parser.add_argument("--name", default="diagnosis")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = args.work if args.run else args.assets
    model = Model(parts / args.run if args.run else parts, vae=parts / "vae", tokenizer=parts / "tokenizer")
    prepare(model.unet, temporal=True)
    rng = np.random.default_rng(7007)
    # every motion equally often, with left and right twice
    motions = itertools.cycle(("moving left", "moving right", *world.MOTIONS))
    scenes = []
    for motion in itertools.islice(motions, args.clips):
        # a scene of this motion, so that its position and facing belong to it
        scene = world.sample_scene(rng)
        while scene.motion != motion:
            scene = world.sample_scene(rng)
        scenes.append(scene)
    clean = encode_clips(
        model.vae, [world.render(scene, np.arange(16), height=picture_height(model.vae)) for scene in scenes]
    )
    masks = torch.stack(
        [
            torch.from_numpy(
                world.subject_mask(s, np.arange(16), width=clean.shape[-1], height=clean.shape[-2])
            )
            for s in scenes
        ]
    ).float()[:, None]
    record: dict[str, object] = {"text": text_table(model)}
    print("text states move by, relative to their deviation:", record["text"], flush=True)
    rows = []
    for level in LEVELS:
        errors: dict[str, list[float]] = {}
        pictures: list[world.Clip] = []
        for part in batches(len(scenes), args.batch):
            some = scenes[part]
            noisy, _, alpha = noised(clean[part], level, seed=level * 100 + part.start)
            variants = {"own": [world.caption(s) for s in some], "none": [""] * len(some)}
            for aspect in ("colour", "subject", "motion"):
                variants[aspect] = [world.caption(exchanged(s, aspect)) for s in some]
            for name, prompts in variants.items():
                seen = predict(model, noisy, level, alpha, prompts)
                error = ((seen - clean[part]).square() * masks[part]).sum((1, 2, 3, 4))
                errors.setdefault(name, []).extend((error / masks[part].sum((1, 2, 3, 4)) / 4).tolist())
                if name == "own":
                    pictures += decode(model, seen)
        readings = [read_clip(clip) for clip in pictures]
        own = np.array(errors["own"])
        moving = np.array([s.motion in OTHER_MOTION for s in scenes])
        row: dict[str, object] = {"level": level, "own": float(own.mean())}
        for name in ("none", "colour", "subject", "motion"):
            other = np.array(errors[name])
            chosen = moving if name == "motion" else np.ones_like(moving)
            row[name] = {
                "worse_by": float((other / own)[chosen].mean() - 1),
                "worse_in": float((other > own)[chosen].mean()),
            }
        row["shown"] = shares(readings, scenes)
        rows.append(row)
        print(json.dumps(row), flush=True)
    record["levels"] = rows
    restarts = []
    for level in args.restart:
        clips: list[world.Clip] = []
        for part in batches(len(scenes), args.batch):
            noisy, _, _ = noised(clean[part], level, seed=level)
            prompts = [world.caption(s) for s in scenes[part]]
            latents = denoise(
                model,
                prompts,
                noisy,
                steps=args.steps,
                guidance=args.guidance,
                generator=torch.Generator().manual_seed(part.start),
                start=level,
            )
            clips += decode(model, latents)
        readings = [read_clip(clip) for clip in clips]
        row = {"restart": level, "shown": shares(readings, scenes)}
        wrong = [s.motion for r, s in zip(readings, scenes, strict=True) if not right(r, s)["motion"]]
        row["motions_wrong"] = wrong
        restarts.append(row)
        print(json.dumps(row), flush=True)
    record["restarts"] = restarts
    (args.work / f"{args.name}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
