"""Train the denoiser and the text encoder on cached latents, in two stages.

Image stage: single frames, temporal layers bypassed. Video stage: short clips; the temporal layers
start as identity, and some batches are still images. Cells under the subject's mask count more in the loss,
since else the landscape is all that is learned. Every step draws its data and noise from its own seed, and
a checkpoint holds everything, so a killed run goes on where it was. Weights are kept in float32; a
bfloat16 copy computes where that is fast.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import world
from common import WORK, Average, Log, Threads, announce, computing_type, cosine, save_checkpoint
from diffusers import UNet3DConditionModel
from temporal import build_scheduler, build_unet, prepare, start_as_identity, temporal_parameters
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

DROP = 0.1  # share of empty captions, for guidance


class Data:
    """Cached latents and all that a batch needs. Latents (n, 24, 4, h, w), masks (n, 24, 1, h, w)."""

    def __init__(self, paths: Sequence[Path], tokenizer: CLIPTokenizer) -> None:
        parts = [torch.load(path, weights_only=True) for path in paths]
        self.latents = torch.cat([part["latents"] for part in parts])
        self.scenes = [world.Scene(**values) for part in parts for values in part["scenes"]]
        self.mirrored = [world.mirrored(scene) for scene in self.scenes]
        _, frames, _, height, width = self.latents.shape
        times = np.arange(frames)
        masks = [world.subject_mask(scene, times, width=width, height=height) for scene in self.scenes]
        self.masks = torch.from_numpy(np.stack(masks))[:, :, None]
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def ids(self, caption: str) -> list[int]:
        """Token ids of a caption, padded."""
        if caption not in self.known:
            self.known[caption] = self.tokenizer(caption, padding="max_length", truncation=True).input_ids
        return self.known[caption]

    def batch(self, size: int, *, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (b, 4, f, h, w), masks (b, 1, f, h, w), token ids (b, 16)."""
        latents, masks, ids = [], [], []
        for i in rng.integers(len(self.latents), size=size):
            start = rng.integers(self.latents.shape[1] - frames + 1)
            z, mask = self.latents[i, start : start + frames], self.masks[i, start : start + frames]
            # circling has one direction in this world, which a mirror would turn round
            flip = rng.random() < 0.5 and (frames == 1 or self.scenes[i].motion != "circling")
            if flip:
                z, mask = z.flip(-1), mask.flip(-1)
            scene = self.mirrored[i] if flip else self.scenes[i]
            caption = "" if rng.random() < DROP else world.caption_variant(scene, rng=rng)
            latents.append(z)
            masks.append(mask)
            ids.append(self.ids(caption))
        stack = torch.stack(latents).float().transpose(1, 2).contiguous()
        return stack, torch.stack(masks).float().transpose(1, 2), torch.tensor(ids)


def timesteps(count: int, *, late: float, start: int) -> Tensor:
    """Stratified timesteps in [0, 1000); the share `late` of them falls into [start, 1000), where motion is
    decided."""
    u = (torch.randperm(count) + torch.rand(count)) / count
    late_part = u < late
    low = start + (u / max(late, 1e-6)) * (1000 - start)
    wide = (u - late) / (1 - late) * 1000
    return torch.where(late_part, low, wide).long().clamp(0, 999)


@dataclass
class Copy:
    """A network that computes in bfloat16, where that is fast, and its float32 master parameters."""

    module: nn.Module
    masters: list[nn.Parameter]

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype) -> "Copy":
        """Take the module's present parameters as masters and turn the module to `dtype`."""
        masters = [nn.Parameter(p.detach().clone().float()) for p in module.parameters()]
        return cls(module.to(dtype), masters)

    @torch.no_grad()
    def gather(self) -> None:
        """Move the gradients to the masters."""
        for master, parameter in zip(self.masters, self.module.parameters(), strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """Copy the masters' values to the module."""
        torch._foreach_copy_(list(self.module.parameters()), self.masters)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train."""
    return [p for p in module.parameters() if p.requires_grad]


def save_models(
    unet: Copy,
    encoder: CLIPTextModel,
    average: Sequence[Tensor],
    *,
    folder: Path,
    template: UNet3DConditionModel,
) -> None:
    """Save the averaged weights as diffusers and transformers models; of a fixed text encoder, those it has."""
    count = len(unet.masters)
    with torch.no_grad():
        for parameter, value in zip(template.parameters(), average[:count], strict=True):
            parameter.copy_(value)
        text = trained(encoder)
        present = [p.detach().clone() for p in text]
        for parameter, value in zip(text, average[count:], strict=True):
            parameter.copy_(value)
        template.save_pretrained(folder / "unet")
        encoder.save_pretrained(folder / "text_encoder")
        for parameter, value in zip(text, present, strict=True):
            parameter.copy_(value)


def train(args: argparse.Namespace) -> None:
    """Run one stage from its checkpoint, or from args.init."""
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    data = Data([args.work / f"{name}.pt" for name in args.data], tokenizer)
    print(f"{len(data.scenes)} clips, mask share {data.masks.float().mean():.3f}", flush=True)
    folder = args.work / args.name
    checkpoint = args.work / f"{args.name}.ckpt"
    log = Log(args.work / f"{args.name}.jsonl")
    video = args.frames > 1
    device = torch.device(args.device)
    dtype = computing_type(args.device)
    template = build_unet()
    network = build_unet()
    if args.init:
        network = UNet3DConditionModel.from_pretrained(args.work / args.init / "unet")
        encoder = CLIPTextModel.from_pretrained(args.work / args.init / "text_encoder")
    else:
        encoder = CLIPTextModel.from_pretrained(args.work / "text_encoder")
    network.to(device)
    encoder.to(device)
    if args.identity:
        start_as_identity(network)
    network.train()
    if args.text_scale > 0:
        encoder.train()
    else:
        encoder.eval().requires_grad_(False)
    inside = temporal_parameters(network)
    is_temporal = [id(p) in inside for p in network.parameters()]
    unet = Copy.of(network, dtype)
    prepare(network, temporal=video)
    text = trained(encoder)
    groups = [
        {
            "params": [m for m, t in zip(unet.masters, is_temporal, strict=True) if not t],
            "scale": args.spatial_scale,
        },
        {"params": [m for m, t in zip(unet.masters, is_temporal, strict=True) if t], "scale": 1.0},
        {"params": text, "scale": args.text_scale},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    everything = [*unet.masters, *text]
    average = Average([], decay=args.decay)
    average.parameters = everything
    average.shadow = [p.detach().clone() for p in everything]
    first, images, clips = 0, 0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        with torch.no_grad():
            torch._foreach_copy_(everything, state["parameters"])
        scales = [group["scale"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["scale"] = scale
        average.shadow = state["average"]
        first, images, clips = state["step"], state["images"], state["clips"]
        unet.scatter()
        print("resumed at step", first, flush=True)
    alphas = build_scheduler().alphas_cumprod.float().to(device)
    smooth: dict[str, float] = {}
    seen: dict[str, int] = {}
    began = time.time()
    threads = Threads(args.threads)
    for step in range(first, args.steps):
        threads.step()
        torch.manual_seed(args.seed * 1_000_003 + step)
        rng = np.random.default_rng([args.seed, step])
        rate = args.lr * min(1.0, (step + 1) / args.warmup) * cosine(step / args.steps, floor=0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        still = video and step % args.image_every == args.image_every - 1
        if video and still != (step and (step - 1) % args.image_every == args.image_every - 1):
            prepare(network, temporal=not still)
        frames = 1 if still else args.frames
        size = args.image_batch if frames == 1 else args.batch
        x, mask, ids = data.batch(size, frames=frames, rng=rng)
        t = timesteps(size, late=args.late if video and not still else 0.0, start=args.late_start)
        x, mask, ids, t = (y.to(device) for y in (x, mask, ids, t))
        a = alphas[t].view(-1, 1, 1, 1, 1)
        noise = torch.randn_like(x)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        wanted = a.sqrt() * noise - (1 - a).sqrt() * x
        states = encoder(ids).last_hidden_state
        predicted = network(noisy.to(dtype), t, states.to(dtype)).sample.float()
        weight = 1 + (args.subject_weight - 1) * mask
        error = (predicted - wanted).square()
        each = (error * weight).mean((1, 2, 3, 4)) / weight.mean()
        loss = each.mean()
        loss.backward()
        unet.gather()
        norm = torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        unet.scatter()
        average.update(step)
        images, clips = images + size * (frames == 1), clips + size * (frames > 1)
        high = t >= 600
        kind = "image" if frames == 1 else "video"
        figures = {f"{kind}_loss": loss.item()}
        if high.any() and not high.all():
            figures |= {f"{kind}_high": each[high].mean().item(), f"{kind}_low": each[~high].mean().item()}
        figures[f"{kind}_subject"] = ((error * mask).sum() / (4 * mask.sum())).item()
        for name, value in figures.items():
            seen[name] = seen.get(name, 0) + 1
            smooth[name] = smooth.get(name, 0.0) + max(0.02, 1 / seen[name]) * (value - smooth.get(name, 0.0))
        last = step + 1 == args.steps
        if step % 50 == 0 or last:
            speed = (step + 1 - first) / (time.time() - began)
            log.write(
                step=step,
                rate=rate,
                norm=norm.item(),
                speed=speed,
                threads=torch.get_num_threads(),
                images=images,
                clips=clips,
                **smooth,
            )
        if step % args.save_every == args.save_every - 1 or last:
            state = {"parameters": [p.detach() for p in everything], "optimizer": optimizer.state_dict()}
            state |= {"average": average.shadow, "step": step + 1, "images": images, "clips": clips}
            save_checkpoint(checkpoint, state)
            if not last:
                save_models(unet, encoder, average.shadow, folder=folder, template=template)
    # out of the loop, which has no steps left after a kill that follows the last checkpoint
    save_models(unet, encoder, average.shadow, folder=folder, template=template)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options of one stage and run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument(
        "--name", required=True, help="names the checkpoint, the log and the folder of the models"
    )
    parser.add_argument("--init", help="the name of the run whose models to start from")
    parser.add_argument("--identity", action="store_true", help="start the temporal layers as identity")
    parser.add_argument("--data", nargs="+", default=["latents"])
    parser.add_argument("--frames", type=int, default=1, help="1: the image stage")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8, help="clips a step")
    parser.add_argument("--image-batch", type=int, default=64, help="single frames a step")
    parser.add_argument(
        "--image-every", type=int, default=8, help="video stage: one image batch every N steps"
    )
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument(
        "--spatial-scale", type=float, default=1.0, help="rate of the spatial layers, times --lr"
    )
    parser.add_argument(
        "--text-scale", type=float, default=0.2, help="rate of the text encoder, times --lr; 0: fixed"
    )
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--decay", type=float, default=0.998, help="of the average that is saved")
    parser.add_argument("--subject-weight", type=float, default=5.0)
    parser.add_argument(
        "--late", type=float, default=0.4, help="share of clips at timesteps from --late-start"
    )
    parser.add_argument("--late-start", type=int, default=600)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    announce(args.work)
    train(args)


if __name__ == "__main__":
    main()
