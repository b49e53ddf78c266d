"""Train a finished denoiser further, on fresh clips, at the noise levels and in the layers that need it.

Every clip is rendered for one step and never seen again. A batch consists of pairs: a clip and its mirror image, with
mirrored noise, the same timestep and the mirrored caption, so that what does not depend on left and right cancels out
of the gradient's noise. With `--rank`, clips that move left or right are also predicted with the wrong direction in
the caption, and the error must then be larger by `--margin`: what does not depend on the caption cancels out again, so
a network that ignores the word learns it from few clips.

With `--correct`, some clips come into the network in a wrong colour or with a wrong subject in part of their frames
and pixels, and must be predicted as the caption says. In sampling the first steps leave such mixtures, which true
clips never show: without this the network follows what it sees and not what it is told. With `--paint`, the clip that
a prediction amounts to is also painted (`painter.py`), and its colours are compared with the true ones.

`--levels` and `--level-share` say where most timesteps of these clips fall, `--layers` which parameters train; the
text encoder stays as it is. Gradients accumulate over `--accumulate` batches. Averages of several lengths are kept.
Every step draws from its own seed, and the checkpoint holds everything, so a killed run resumes.
"""

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from common import (
    WORK,
    Average,
    Log,
    announce,
    autocast,
    cosine,
    encode_clips,
    picture_height,
    render_in_order,
    save_checkpoint,
)
from diffusers import AutoencoderKL, UNet3DConditionModel
from painter import CELL, Painter, load_painter
from temporal import build_scheduler, prepare, temporal_parameters
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

FRAMES = 16
DIRECTED = ("moving left", "moving right")
CLOSE = ("red", "pink", "yellow")  # colours that lie together in the latents
ENDS = (2, 3)  # the frames at the start and at the end of a clip that have fewer neighbours
PAINTED_BELOW = 820  # timesteps whose predictions are sharp enough to be painted


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What batches consist of, as shares of their clips.

    pairs: the number of clips. directed: clips that move left or right. correct: clips with a wrong version. close:
    clips whose colour is drawn from CLOSE, as is that of their wrong version; the others have any colour. height: that
    of the pictures, in pixels.
    """

    pairs: int
    directed: float
    correct: float
    close: float
    height: int


def sample_scenes(mixture: Mixture, *, rng: np.random.Generator) -> list[world.Scene]:
    """Scenes of one batch."""
    scenes = []
    for _ in range(mixture.pairs):
        wanted = rng.random() < mixture.directed
        scene = world.sample_scene(rng)
        while (scene.motion in DIRECTED) != wanted:
            scene = world.sample_scene(rng)
        if mixture.close and rng.random() < mixture.close:
            scene = replace(scene, colour=str(rng.choice(CLOSE)))
        scenes.append(scene)
    return scenes


def sample_wrong(scene: world.Scene, *, close: float, rng: np.random.Generator) -> world.Scene:
    """Return the scene with another colour, or one time in four with another subject."""
    if rng.random() < 0.25:
        return replace(scene, subject=str(rng.choice([s for s in world.SUBJECTS if s != scene.subject])))
    colours = CLOSE if scene.colour in CLOSE and close and rng.random() < close else world.COLOURS
    return replace(scene, colour=str(rng.choice([c for c in colours if c != scene.colour])))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes and their clips; `wrong` holds clips of changed scenes by the number of the scene."""

    seed: int
    scenes: list[world.Scene]
    clips: list[world.Clip]
    wrong: dict[int, world.Clip]


def render_batch(seed: int, *, mixture: Mixture) -> Batch:
    """One batch; a share of its clips has a wrong version."""
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(mixture, rng=rng)
    times, height = np.arange(FRAMES), mixture.height
    clips = [world.render(scene, times, height=height) for scene in scenes]
    chosen = [i for i in range(mixture.pairs) if rng.random() < mixture.correct]
    changed = {i: sample_wrong(scenes[i], close=mixture.close, rng=rng) for i in chosen}
    wrong = {i: world.render(scene, times, height=height) for i, scene in changed.items()}
    return Batch(seed=seed, scenes=scenes, clips=clips, wrong=wrong)


def blend(true: Tensor, wrong: Tensor) -> Tensor:
    """Latents (4, f, h, w) of a true clip, replaced by a wrong one's in single frames or in smooth patches."""
    frames, height, width = true.shape[1:]
    if torch.rand(()) < 0.5:
        share = (torch.rand(1, frames, 1, 1) < torch.rand(())).float()
    else:
        coarse = torch.rand(1, 1, 5, 3, 4)
        smooth = F.interpolate(coarse, (frames, height, width), mode="trilinear", align_corners=True)[0]
        share = ((smooth - 0.5) * 5 + 0.5).clamp(0, 1)
    return torch.lerp(true, wrong, share.to(true.device))


def with_mirrors(
    scenes: Sequence[world.Scene], latents: Tensor, *, rng: np.random.Generator, drop: float
) -> tuple[Tensor, Tensor, list[str]]:
    """Latents (2b, 4, f, h, w), masks (2b, 1, f, h, w) and captions of the clips, then of their mirror images."""
    height, width = latents.shape[-2:]
    masks = [world.subject_mask(s, np.arange(FRAMES), width=width, height=height) for s in scenes]
    mask = torch.from_numpy(np.stack(masks))[:, None].float().to(latents.device)
    captions = []
    for scene in scenes:
        # both of a pair get the same wording
        seed = int(rng.integers(1 << 30))
        empty = rng.random() < drop
        for one in (scene, world.mirrored(scene)):
            words = world.caption_variant(one, rng=np.random.default_rng(seed))
            captions.append("" if empty else words)
    return (
        torch.cat([latents, latents.flip(-1)]),
        torch.cat([mask, mask.flip(-1)]),
        captions[::2] + captions[1::2],
    )


def with_wrong(vae: AutoencoderKL, latents: Tensor, batch: Batch, chosen: Sequence[int]) -> Tensor:
    """Return the latents (b, 4, f, h, w) of a batch; the chosen clips are replaced by their wrong versions in parts."""
    shown = latents.clone()
    if chosen:
        others = encode_clips(vae, [batch.wrong[i] for i in chosen])
        for i, other in zip(chosen, others, strict=True):
            shown[i] = blend(latents[i], other)
    return shown


def sample_levels(count: int, *, low: int, high: int, share: float) -> Tensor:
    """Timesteps: the share `share` of them in [low, high), the others anywhere."""
    inside = low + torch.rand(count) * (high - low)
    return torch.where(torch.rand(count) < share, inside, torch.rand(count) * 1000).long().clamp(0, 999)


def choose_layers(unet: UNet3DConditionModel, layers: str) -> list[dict[str, object]]:
    """Parameter groups with the scale of their rate. `directed`: layers over time, and cross-attentions."""
    inside = temporal_parameters(unet)
    over_time, others = [], []
    for name, parameter in unet.named_parameters():
        if id(parameter) in inside:
            over_time.append(parameter)
        elif layers == "all" or "blocks.0.attn2." in name or "transformer_blocks.0.norm2." in name:
            others.append(parameter)
        else:
            parameter.requires_grad_(False)
    return [{"params": over_time, "scale": 1.0}, {"params": others, "scale": 0.5}]


def painting_error(painter: Painter, believed: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Mean square error of painted clips; latents (b, 4, f, h, w), weights of their cells (b, 1, f, h, w)."""

    def pictures(latents: Tensor) -> Tensor:
        return painter(latents.transpose(1, 2).flatten(0, 1))

    cells = F.interpolate(weight.transpose(1, 2).flatten(0, 1), scale_factor=CELL)
    with torch.no_grad():
        wanted = pictures(true)
    return ((pictures(believed) - wanted).square() * cells).mean() / cells.mean()


class States:
    """Text states of captions, computed once each."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        self.encoder, self.tokenizer, self.device = encoder, tokenizer, device
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (b, 16, c) on the device."""
        for caption in captions:
            if caption not in self.known:
                ids = self.tokenizer(
                    caption, padding="max_length", truncation=True, return_tensors="pt"
                ).input_ids
                self.known[caption] = self.encoder(ids).last_hidden_state[0].to(self.device)
        return torch.stack([self.known[caption] for caption in captions])


def save_models(
    unet: UNet3DConditionModel, encoder: CLIPTextModel, averages: Mapping[str, Average], *, run: Path
) -> None:
    """Save each average as diffusers and transformers models, in a folder RUN-DECAY."""
    for name, average in averages.items():
        folder = run.with_name(f"{run.name}-{name}")
        average.swap()
        copy.deepcopy(unet).cpu().save_pretrained(folder / "unet")
        average.swap()
        encoder.save_pretrained(folder / "text_encoder")


def train(args: argparse.Namespace) -> None:
    """Run from the checkpoint, or from args.init."""
    device = torch.device(args.device)
    start, model = args.work / args.init, args.model or args.work
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(start / "text_encoder", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval().to(device)
    painter = None
    if args.paint > 0:
        path = args.work / "painter.pt"
        painter = load_painter(vae, path, steps=args.painter_steps, count=args.painter_frames)
    unet = UNet3DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32).to(device).train()
    prepare(unet, temporal=True)
    groups = choose_layers(unet, args.layers)
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    averages = {}
    for decay in args.decays:
        averages[str(decay)] = Average([], decay=decay)
        averages[str(decay)].parameters = trained
        averages[str(decay)].shadow = [p.detach().clone() for p in trained]
    checkpoint = args.work / f"{args.name}.ckpt"
    log = Log(args.work / f"{args.name}.jsonl")
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        with torch.no_grad():
            torch._foreach_copy_(trained, state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        for name, average in averages.items():
            average.shadow = state["averages"][name]
        first = state["step"]
        print("resumed at step", first, flush=True)
    states = States(encoder, tokenizer, device)
    alphas = build_scheduler().alphas_cumprod.float().to(device)
    numbers = range(first * args.accumulate, args.steps * args.accumulate)
    seeds = [args.seed * 100_000_007 + number for number in numbers]
    mixture = Mixture(
        pairs=args.pairs,
        directed=args.directed,
        correct=args.correct,
        close=args.close,
        height=picture_height(vae),
    )
    render = partial(render_batch, mixture=mixture)
    batches = render_in_order(seeds, render=render, workers=args.workers)
    ends = torch.ones(FRAMES, 1, 1, device=device)
    ends[: ENDS[0]] = ends[-ENDS[1] :] = args.ends
    began = time.time()
    smooth = 0.0
    curves: dict[str, float] = {}
    for step in range(first, args.steps):
        rate = args.lr * min(1.0, (step + 1) / args.warmup) * cosine(step / args.steps, floor=0.05)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        total = 0.0
        for _ in range(args.accumulate):
            batch = next(batches)
            scenes = batch.scenes
            torch.manual_seed(batch.seed)
            rng = np.random.default_rng([batch.seed, 1])
            latents = encode_clips(vae, batch.clips)
            x, mask, captions = with_mirrors(scenes, latents, rng=rng, drop=args.drop)
            noise = torch.randn(latents.shape).to(device)
            noise = torch.cat([noise, noise.flip(-1)])
            moving = torch.tensor([scene.motion in DIRECTED for scene in scenes])
            first_level, last_level = args.levels
            t = sample_levels(len(scenes), low=first_level, high=last_level, share=args.level_share)
            t = torch.where(moving, t, torch.rand(len(scenes)) * 1000).long()
            count = len(scenes)
            corrected = [i for i in batch.wrong if captions[i]]
            shown = with_wrong(vae, latents, batch, corrected)
            if corrected:
                t[corrected] = torch.randint(*args.correct_levels, (len(corrected),))
            shown = torch.cat([shown, shown.flip(-1)])
            t = t.repeat(2)
            # the world circles one way only, which a mirror would turn round
            own = [i for i in range(2 * count) if i < count or scenes[i % count].motion != "circling"]
            told = [i for i in own if captions[i] and i % count not in corrected]
            ranked = [i for i in told if args.rank > 0 and moving[i % count]]
            rows = own + ranked
            x, shown, mask, noise, t = (y[rows].to(device) for y in (x, shown, mask, noise, t))
            # a mirror image's caption is its partner's with the direction exchanged
            words = [captions[i] for i in own] + [captions[(i + count) % (2 * count)] for i in ranked]
            a = alphas[t].view(-1, 1, 1, 1, 1)
            noisy = a.sqrt() * shown + (1 - a).sqrt() * noise
            # the v from which x follows; for true clips this is the usual sqrt(a) noise - sqrt(1 - a) x
            wanted = (a.sqrt() * noisy - x) / (1 - a).sqrt()
            with autocast(device.type):
                predicted = unet(noisy, t, states(words)).sample.float()
            weight = (1 + (args.subject_weight - 1) * mask) * ends
            errors = ((predicted - wanted).square() * weight).mean((1, 2, 3, 4)) / weight.mean((1, 2, 3, 4))
            loss = errors[: len(own)].mean()
            total += loss.item() / args.accumulate
            if painter is not None:
                clear = [i for i in range(len(own)) if t[i] < PAINTED_BELOW]
                believed = a.sqrt() * noisy - (1 - a).sqrt() * predicted
                if clear:
                    painted = painting_error(painter, believed[clear], x[clear], weight[clear])
                    loss = loss + args.paint * painted * len(clear) / len(own)
                    curves["painted"] = curves.get("painted", painted.item()) * 0.98 + 0.02 * painted.item()
            if ranked:
                right = errors[[own.index(i) for i in ranked]]
                wrong = errors[len(own) :]
                gap = (wrong - right) / right.detach()
                loss = loss + args.rank * (right.detach() * (args.margin - gap).clamp(min=0)).mean()
                inside = (t[len(own) :] >= first_level) & (t[len(own) :] < last_level)
                for name, value in (("gap", gap), ("told", (gap > 0).float())):
                    for number in value[inside].tolist():
                        curves[name] = curves.get(name, number) * 0.98 + 0.02 * number
            (loss / args.accumulate).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for average in averages.values():
            average.update(step)
        seen = step + 1 - first
        smooth += max(0.05, 1 / seen) * (total - smooth)
        last = step + 1 == args.steps
        if step % args.log_every == 0 or last:
            speed = (time.time() - began) / seen
            log.write(step=step, rate=rate, loss=smooth, norm=norm.item(), seconds=speed, **curves)
        if step % args.save_every == args.save_every - 1 or last:
            state = {"parameters": [p.detach() for p in trained], "optimizer": optimizer.state_dict()}
            state |= {"averages": {name: a.shadow for name, a in averages.items()}, "step": step + 1}
            save_checkpoint(checkpoint, state)
            if not last:
                save_models(unet, encoder, averages, run=args.work / args.name)
    # out of the loop, which has no steps left after a kill that follows the last checkpoint
    save_models(unet, encoder, averages, run=args.work / args.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--model", type=Path, help="holds autoencoder and tokenizer; default: --work")
    parser.add_argument(
        "--name", required=True, help="names the checkpoint, the log and the folders of the models"
    )
    parser.add_argument("--init", required=True, help="the run whose models to start from")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pairs", type=int, default=2, help="clips of a batch, each with its mirror image")
    parser.add_argument("--accumulate", type=int, default=4, help="batches of a step")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--layers", choices=("all", "directed"), default="all")
    parser.add_argument(
        "--directed", type=float, default=1 / 3, help="share of clips that move left or right"
    )
    parser.add_argument("--levels", type=int, nargs=2, default=(0, 1000))
    parser.add_argument("--level-share", type=float, default=0.75, help="share of timesteps inside --levels")
    parser.add_argument("--drop", type=float, default=0.1, help="share of empty captions")
    parser.add_argument("--subject-weight", type=float, default=5.0)
    parser.add_argument("--decays", type=float, nargs="+", default=(0.99, 0.998))
    parser.add_argument("--rank", type=float, default=0.0, help="weight of telling left from right")
    parser.add_argument(
        "--margin", type=float, default=0.05, help="how much worse the wrong direction shall be"
    )
    parser.add_argument("--correct", type=float, default=0.0, help="share of clips shown with a wrong word")
    parser.add_argument("--correct-levels", type=int, nargs=2, default=(450, 950), help="their timesteps")
    parser.add_argument(
        "--paint", type=float, default=0.0, help="weight of the colours of painted predictions"
    )
    parser.add_argument("--ends", type=float, default=1.0, help="weight of the frames at the ends of a clip")
    parser.add_argument(
        "--close", type=float, default=0.0, help="share of clips in colours that are easily confused"
    )
    parser.add_argument("--painter-steps", type=int, default=2500)
    parser.add_argument("--painter-frames", type=int, default=4000, help="rendered frames it learns from")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that render; 0: this one")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    announce(args.work)
    train(args)


if __name__ == "__main__":
    main()
