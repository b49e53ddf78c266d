"""Train an autoencoder for pictures of twice the size that keeps the latents of the present one.

The new autoencoder has one level more: 16x16 pixels a latent cell. Its encoder learns the latents that the present one
gives for the half-size picture, and its decoder learns to paint the full-size picture from them, so a denoiser trained
on the present latents works unchanged. Weights start from the present autoencoder; the new level starts as averaging
in the encoder and as repetition of pixels in the decoder, so at step 0 the encoder is nearly right and the decoder
paints the half-size picture, enlarged. What training adds is sharpness.
"""

import argparse
import time
from collections.abc import Sequence
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
    psnr,
    render_in_order,
    save_checkpoint,
    to_frames,
    to_unit,
)
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from train_vae import WHOLE_FROM, gradient_error

HEIGHT, WIDTH = 2 * world.HEIGHT, 2 * world.WIDTH
CROP = 128


def build_large(small: AutoencoderKL) -> AutoencoderKL:
    """Return the new autoencoder with the small one's weights, the new level neutral."""
    config = dict(small.config)
    widths = list(config["block_out_channels"])
    large = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * (len(widths) + 1),
        up_block_types=("UpDecoderBlock2D",) * (len(widths) + 1),
        block_out_channels=(widths[0], *widths),
        layers_per_block=config["layers_per_block"],
        latent_channels=config["latent_channels"],
        norm_num_groups=config["norm_num_groups"],
        sample_size=(HEIGHT, WIDTH),
        scaling_factor=config["scaling_factor"],
    )
    down, up = large.encoder.down_blocks, large.decoder.up_blocks
    for ours, theirs in zip(down[1:], small.encoder.down_blocks, strict=True):
        ours.load_state_dict(theirs.state_dict())
    for ours, theirs in zip(up[:-2], small.decoder.up_blocks[:-1], strict=True):
        ours.load_state_dict(theirs.state_dict())
    # the small decoder's last level is followed by a doubling, and that by the new level
    up[-2].resnets.load_state_dict(small.decoder.up_blocks[-1].resnets.state_dict())
    for part in ("conv_in", "mid_block", "conv_norm_out", "conv_out"):
        getattr(large.encoder, part).load_state_dict(getattr(small.encoder, part).state_dict())
        getattr(large.decoder, part).load_state_dict(getattr(small.decoder, part).state_dict())
    large.quant_conv.load_state_dict(small.quant_conv.state_dict())
    large.post_quant_conv.load_state_dict(small.post_quant_conv.state_dict())
    with torch.no_grad():
        for resnet in (*down[0].resnets, *up[-1].resnets):
            nn.init.zeros_(resnet.conv2.weight)
            nn.init.zeros_(resnet.conv2.bias)
        eye = torch.eye(widths[0])
        average = down[0].downsamplers[0].conv
        # the layer pads right and below: its kernel's first two rows and columns cover one cell
        average.weight.zero_()
        average.weight[:, :, :2, :2] = eye[:, :, None, None] / 4
        average.bias.zero_()
        repeat = up[-2].upsamplers[0].conv
        repeat.weight.zero_()
        repeat.weight[:, :, 1, 1] = eye
        repeat.bias.zero_()
    return large


def render_frames(job: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Random large frames: (n, h, w, 3), and the subject's masks, (n, h, w). job: the seed, and n."""
    seed, count = job
    rng = np.random.default_rng(seed)
    pictures, masks = [], []
    for _ in range(count):
        scene, times = world.sample_scene(rng), rng.uniform(0, 240, 1)
        pictures.append(world.render(scene, times, height=HEIGHT))
        masks.append(world.subject_mask(scene, times, width=WIDTH, height=HEIGHT))
    return np.concatenate(pictures), np.concatenate(masks)


def held_out_frames(count: int, *, seed: int) -> Tensor:
    """Random large frames (n, 3, h, w) in [-1, 1]."""
    return to_unit(render_frames((seed, count))[0])


@torch.no_grad()
def measure(large: AutoencoderKL, small: AutoencoderKL, pictures: Tensor) -> tuple[dict[str, float], Tensor]:
    """On held-out pictures (n, 3, h, w): PSNR of own and of the small encoder's latents, and how far these differ."""
    own, theirs, decoded = [], [], []
    for some in pictures.split(8):
        own.append(large.encode(some).latent_dist.mode())
        theirs.append(small.encode(F.avg_pool2d(some, 2)).latent_dist.mode())
        decoded.append(large.decode(theirs[-1]).sample.clamp(-1, 1))
    through = torch.cat([large.decode(z).sample.clamp(-1, 1) for z in own])
    painted = torch.cat(decoded)
    figures = {
        "psnr": psnr(through, pictures).mean().item(),
        "psnr_of_small_latents": psnr(painted, pictures).mean().item(),
        "latents_differ": (torch.cat(own) - torch.cat(theirs)).square().mean().sqrt().item(),
        "enlarged": psnr(
            F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2.0, mode="bilinear"), pictures
        )
        .mean()
        .item(),
    }
    return figures, painted


def train(large: AutoencoderKL, small: AutoencoderKL, *, args: argparse.Namespace) -> None:
    """Train for args.steps steps, from the checkpoint if there is one. Every step renders its own frames."""
    device = torch.device(args.device)
    checkpoint = args.work / f"{args.name}.ckpt"
    log = Log(args.work / f"{args.name}.jsonl")
    held_out = held_out_frames(args.held_out, seed=999).to(device)
    optimizer = torch.optim.AdamW(
        large.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    average = Average([large], decay=0.998)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        large.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow = state["average"]
        first = state["step"]
        print("resumed at step", first, flush=True)

    def is_crop(step: int) -> bool:
        return step / args.steps < WHOLE_FROM

    jobs = (
        (10_000_019 + step, args.batch if is_crop(step) else max(1, args.batch // 2))
        for step in range(first, args.steps)
    )
    rendered = render_in_order(jobs, render=render_frames, workers=args.workers)
    began = time.time()
    for step, (frames, masks) in zip(range(first, args.steps), rendered, strict=True):
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 100) * cosine(step / args.steps, floor=0.01)
        x, mask = to_unit(frames), torch.from_numpy(masks)[:, None]
        if is_crop(step):
            # even, so that the half-size picture has the same cells
            top, left = (2 * int(torch.randint((size - CROP) // 2 + 1, ())) for size in (HEIGHT, WIDTH))
            x = x[:, :, top : top + CROP, left : left + CROP]
            mask = mask[:, :, top : top + CROP, left : left + CROP]
        x = x.to(device)
        weight = 1 + (args.subject_weight - 1) * mask.to(device).float()
        target = x
        with autocast(args.device):
            with torch.no_grad():
                wanted = small.encode(F.avg_pool2d(x, 2)).latent_dist
            posterior = large.encode(x).latent_dist
            z = wanted.sample()
            if step % 2:
                z, target, weight = z.flip(-1), x.flip(-1), weight.flip(-1)
            y = large.decode(z).sample.float()
        latents = (posterior.mean.float() - wanted.mean.float()).square().mean()
        spreads = (posterior.logvar.float() - wanted.logvar.float()).square().mean()
        painted = ((y - target).abs() * weight).mean() + ((y - target).square() * weight).mean()
        edges = gradient_error(y, target, weight)
        loss = painted + edges + 4 * latents + 0.01 * spreads
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(large.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        last = step + 1 == args.steps
        if step % 50 == 0 or last:
            figures = {}
            if step % args.measure_every == 0 or last:
                average.swap()
                figures, decoded = measure(large, small, held_out)
                average.swap()
                rows = [list(to_frames(p.cpu())) for p in (held_out[:6], decoded[:6])]
                world.contact_sheet(rows, args.work / "pictures" / f"{args.name}.png")
            seconds = (time.time() - began) / (step + 1 - first)
            log.write(
                step=step,
                painted=painted.item(),
                edges=edges.item(),
                latents=latents.item(),
                seconds=seconds,
                **figures,
            )
        if step % 200 == 199 or last:
            state = {"vae": large.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(checkpoint, state | {"average": average.shadow})
    average.swap()


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, train, measure, save as a diffusers model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--small", type=Path, help="the present one; default: WORK/vae")
    parser.add_argument(
        "--name", default="vae256", help="names the checkpoint, the log and the folder of the model"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=8, help="crops a step; of whole frames, half as many")
    parser.add_argument("--subject-weight", type=float, default=4.0)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=128, help="held-out pictures of the last measurement")
    parser.add_argument("--measure-every", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that render; 0: this one")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    announce(args.work)
    small = (
        AutoencoderKL.from_pretrained(args.small or args.work / "vae", torch_dtype=torch.float32)
        .eval()
        .to(args.device)
    )
    large = build_large(small).to(args.device)
    train(large, small, args=args)
    large.eval()
    pictures = held_out_frames(args.pictures, seed=11).to(args.device)
    figures, _ = measure(large, small, pictures)
    print(f"held-out frames, n {len(pictures)}:", figures)
    large.save_pretrained(args.work / args.name)


if __name__ == "__main__":
    main()
