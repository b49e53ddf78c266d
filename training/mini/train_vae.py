"""Train the autoencoder (8x8 pixels a latent cell, 4 channels) on frames of the world, then whiten its
latents.

Half of the steps decode mirrored latents to mirrored pictures, so that latents can be mirrored instead of
pictures when the denoiser trains. The first part of the training sees random crops, the last part whole
frames. At the end the latents' channels are shifted and scaled to mean 0 and deviation 1 inside quant_conv
and post_quant_conv, so scaling_factor is 1.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import world
from common import (
    WORK,
    Average,
    Log,
    Threads,
    announce,
    autocast,
    cosine,
    psnr,
    render_all,
    save_checkpoint,
    to_frames,
)
from diffusers import AutoencoderKL
from torch import Tensor

CROP = 64
WHOLE_FROM = 0.6  # progress at which whole frames replace crops


def build_vae() -> AutoencoderKL:
    """Return the untrained autoencoder."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=(world.HEIGHT, world.WIDTH),
        scaling_factor=1.0,
    )


def frames(count: int, *, seed: int, each: int, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Random frames: uint8 (n, 3, h, w), and the subject's masks, bool (n, 1, h, w)."""
    rng = np.random.default_rng(seed)
    jobs = []
    for _ in range(count // each):
        scene = world.sample_scene(rng)
        jobs.append((scene, rng.uniform(0, 240, each)))
    pictures = list(render_all(jobs, workers=workers))
    masks = [world.subject_mask(*job, width=world.WIDTH, height=world.HEIGHT) for job in jobs]
    return (
        torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.concatenate(masks))[:, None],
    )


def gradient_error(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean absolute difference of the pictures' gradients (sharpness of edges)."""
    d = a - b
    across = ((d[..., 1:] - d[..., :-1]).abs() * weight[..., 1:]).mean()
    down = ((d[..., 1:, :] - d[..., :-1, :]).abs() * weight[..., 1:, :]).mean()
    return across + down


@torch.no_grad()
def measure(vae: AutoencoderKL, pictures: Tensor) -> tuple[dict[str, float], Tensor]:
    """PSNR on held-out pictures (n, 3, h, w) in [-1, 1], straight and by mirrored latents; and the decoded
    ones."""
    z = vae.encode(pictures).latent_dist.mode()
    decoded = vae.decode(z).sample.clamp(-1, 1)
    mirrored = vae.decode(z.flip(-1)).sample.clamp(-1, 1)
    figures = {
        "psnr": psnr(decoded, pictures).mean().item(),
        "psnr_mirrored": psnr(mirrored, pictures.flip(-1)).mean().item(),
        "latent_std": z.std().item(),
    }
    return figures, decoded


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold each latent channel's mean and deviation over the pictures into quant_conv and post_quant_conv."""
    z = torch.cat([vae.encode(part).latent_dist.mode() for part in pictures.split(64)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std.view(-1, 1, 1, 1)
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std.view(1, -1, 1, 1)


def train(vae: AutoencoderKL, *, args: argparse.Namespace) -> None:
    """Train for args.steps steps, from the checkpoint if there is one."""
    checkpoint = args.work / "vae.ckpt"
    log = Log(args.work / "vae.jsonl")
    began = time.time()
    device = torch.device(args.device)
    pool, masks = (x.to(device) for x in frames(args.pool, seed=0, each=2, workers=args.workers))
    held_out = frames(64, seed=999, each=1)[0].to(device).float() / 127.5 - 1
    print(f"{len(pool)} frames in {time.time() - began:.0f} s", flush=True)
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    average = Average([vae], decay=0.998)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow = state["average"]
        first = state["step"]
        print("resumed at step", first, flush=True)
    threads = Threads(args.threads)
    for step in range(first, args.steps):
        threads.step()
        torch.manual_seed(step)
        progress = step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 100) * cosine(progress, floor=0.01)
        crop = progress < WHOLE_FROM
        chosen = torch.randint(len(pool), (args.batch if crop else args.batch // 2,), device=device)
        x, mask = pool[chosen], masks[chosen]
        if crop:
            top = int(torch.randint(world.HEIGHT - CROP + 1, ()))
            left = int(torch.randint(world.WIDTH - CROP + 1, ()))
            x = x[:, :, top : top + CROP, left : left + CROP]
            mask = mask[:, :, top : top + CROP, left : left + CROP]
        x = x.float() / 127.5 - 1
        weight = 1 + (args.subject_weight - 1) * mask.float()
        target = x
        with autocast(args.device):
            posterior = vae.encode(x).latent_dist
            z = posterior.sample()
            if step % 2:
                z, target, weight = z.flip(-1), x.flip(-1), weight.flip(-1)
            y = vae.decode(z).sample
        y, mean, logvar = y.float(), posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        l1 = ((y - target).abs() * weight).mean()
        edges = gradient_error(y, target, weight)
        square = ((y - target).square() * weight).mean()
        loss = l1 + 0.5 * edges + square + args.kl * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        last = step + 1 == args.steps
        if step % 100 == 0 or last:
            figures = {}
            if step % 500 == 0 or last:
                average.swap()
                figures, decoded = measure(vae, held_out)
                average.swap()
                rows = [
                    to_frames(p.cpu()) for p in (held_out[:8], decoded[:8], held_out[8:16], decoded[8:16])
                ]
                world.contact_sheet(rows, args.work / "pictures" / "vae.png")
            log.write(step=step, l1=l1.item(), edges=edges.item(), kl=kl.item(), **figures)
        if step % 500 == 499 or last:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(checkpoint, state | {"average": average.shadow})
    average.swap()


def main() -> None:
    """Train, whiten, measure, save as a diffusers model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kl", type=float, default=3e-5)
    parser.add_argument("--subject-weight", type=float, default=4.0)
    parser.add_argument("--pool", type=int, default=12000, help="frames to train on")
    parser.add_argument("--batch", type=int, default=8, help="crops a step; of whole frames, half as many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that render; 0: this one")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    announce(args.work)
    vae = build_vae().to(args.device)
    train(vae, args=args)
    vae.eval()
    pictures = frames(512, seed=11, each=1)[0].to(args.device).float() / 127.5 - 1
    before, _ = measure(vae, pictures[:256])
    whiten(vae, pictures)
    after, _ = measure(vae, pictures[:256])
    with torch.no_grad():
        noise = vae.encode(pictures[:64]).latent_dist.std.mean((0, 2, 3))
    print(
        "held-out frames, n 256: before whitening",
        before,
        "after",
        after,
        "posterior deviation",
        noise.tolist(),
    )
    vae.save_pretrained(args.work / "vae")


if __name__ == "__main__":
    main()
