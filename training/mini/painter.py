"""A small network that paints latents as pictures of 64x40, for a loss that sees colours as a viewer does.

In the latents red, yellow and pink lie closer together than the spread of each (0.4 to 0.9 for a spread of 1 to 2), so
an error that turns one into another costs a denoiser little. In pictures it costs much. Decoding every prediction with
the autoencoder would take longer than the denoiser; this takes a hundredth of that.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from common import cosine, encode_clips, picture_height, save_checkpoint, to_unit
from diffusers import AutoencoderKL
from torch import Tensor, nn

CELL = 4  # pixels across a latent cell of the painted picture
WIDTH = 96


class Painter(nn.Module):
    """Latents (n, 4, h, w) to pictures (n, 3, 4 h, 4 w) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, 3 * CELL**2, 1),
            nn.PixelShuffle(CELL),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def small_pictures(frames: Tensor, *, height: int) -> Tensor:
    """Frames (n, 3, h, w) as pictures of this height, each pixel a mean."""
    return F.avg_pool2d(frames, frames.shape[-2] // height)


@torch.no_grad()
def examples(vae: AutoencoderKL, count: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (n, 4, h, w), their pictures and the subject's share of each pixel (n, 1, 4 h, 4 w)."""
    rng = np.random.default_rng(seed)
    latents, pictures, masks = [], [], []
    for _ in range(count // 4):
        scene, times = world.sample_scene(rng), rng.uniform(0, 240, 4)
        clip = world.render(scene, times, height=picture_height(vae))
        mask = world.subject_mask(scene, times, width=world.WIDTH, height=world.HEIGHT)
        latents.append(encode_clips(vae, [clip])[0].transpose(0, 1).cpu())
        pictures.append(small_pictures(to_unit(clip), height=world.HEIGHT // 8 * CELL))
        masks.append(F.avg_pool2d(torch.from_numpy(mask)[:, None].float(), 8 // CELL))
    return torch.cat(latents), torch.cat(pictures), torch.cat(masks)


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights."""
    found = hashlib.sha256()
    for weights in module.state_dict().values():
        found.update(weights.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def load_painter(vae: AutoencoderKL, path: Path, *, steps: int, count: int) -> Painter:
    """Return the painter of this autoencoder's latents: read from a file, or trained, in a minute, and kept there.

    A file of a painter for an autoencoder with other weights is replaced.
    """
    painter, vae_digest = Painter(), digest(vae)
    found = torch.load(path, weights_only=True) if path.exists() else {}
    if found.get("vae") == vae_digest:
        painter.load_state_dict(found["painter"])
    else:
        train(painter, vae, steps=steps, count=count)
        save_checkpoint(path, {"painter": painter.state_dict(), "vae": vae_digest})
    return painter.to(vae.device).eval().requires_grad_(False)


def train(painter: Painter, vae: AutoencoderKL, *, steps: int, count: int) -> None:
    """Fit the painter to `count` rendered frames."""
    torch.manual_seed(0)
    latents, pictures, masks = examples(vae, count, seed=31)
    held_out = examples(vae, max(4, count // 20), seed=32)
    optimizer = torch.optim.AdamW(painter.parameters(), lr=2e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * cosine(step / steps, floor=0.01)
        some = torch.randint(len(latents), (32,))
        z = latents[some]
        # predictions are never exact
        z = z + 0.1 * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
        loss = ((painter(z) - pictures[some]).square() * (1 + 9 * masks[some])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z, wanted, mask = held_out
        errors = (painter(z) - wanted).square()
        inside = ((errors * mask).sum() / (3 * mask.sum())).sqrt()
    print(
        f"painter: root mean square error {errors.mean().sqrt():.3f}, on the subject {inside:.3f}", flush=True
    )
