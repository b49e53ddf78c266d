"""Previews: small pictures from latents, by a linear map from their channels to colours.

Dims: f frames, c channels, h w latent height and width.
"""

import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vinfinity.media.mp4 import file_url
from vinfinity.media.sheet import ContactSheet
from vinfinity.models.decoder import Decoder
from vinfinity.system.files import temporary, write_whole

# approximate pixels of the longer side
SIDE = 128
# frames that a map is fitted to
FITTED_FRAMES = 4
# strength of the ridge penalty, relative to the variance of the latents
RIDGE = 1e-3


@dataclass(frozen=True)
class ColourMap:
    """Colours as a linear function of a latent position's channels. weights: (c + 1, 3); the last row is the offset."""

    weights: Tensor

    @classmethod
    def fit(cls, decoder: Decoder, latents: Tensor) -> "ColourMap":
        """Fit a map to a decoder's output for latents (f, c, h, w), by least squares over their positions."""
        colours = []
        for frame in latents:
            # as the first frame of a video, which causal decoders decode alone
            [picture] = decoder.stream().decode(frame[None])
            picture = picture.clamp(-1, 1)
            colours.append(F.avg_pool2d(picture, decoder.config.downscale))
        targets = torch.cat(colours).permute(0, 2, 3, 1).reshape(-1, 3).double()
        inputs = _with_one(latents).reshape(len(targets), -1).double()
        centre, shift = inputs[:, :-1].mean(0), targets.mean(0)
        inputs, targets = inputs[:, :-1] - centre, targets - shift
        products = inputs.T @ inputs
        products += RIDGE * products.diagonal().mean() * torch.eye(len(products), dtype=torch.float64)
        weights = torch.linalg.solve(products, inputs.T @ targets)
        return cls(torch.cat([weights, (shift - centre @ weights)[None]]).float())

    def __call__(self, latents: Tensor) -> Tensor:
        """Return the pictures (f, h, w, 3) uint8 of latents (f, c, h, w)."""
        colours = _with_one(latents) @ self.weights
        return colours.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)

    @classmethod
    def load(cls, path: Path) -> "ColourMap | None":
        """Load a saved map. Return None if there is none, or if it is damaged."""
        try:
            weights = torch.tensor(json.loads(path.read_text())["weights"], dtype=torch.float32)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(weights) if weights.ndim == 2 and weights.shape[1] == 3 else None

    def save(self, path: Path) -> None:
        """Save the map. Raises OutputError."""
        write_whole(path, json.dumps({"weights": self.weights.tolist()}))


def enlarged(pictures: Tensor) -> np.ndarray:
    """Enlarge pictures (f, h, w, 3) uint8 to about SIDE pixels, by a whole factor."""
    factor = max(1, SIDE // max(pictures.shape[1:3]))
    large = F.interpolate(pictures.permute(0, 3, 1, 2).float(), scale_factor=factor, mode="bilinear")
    return large.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def decoded(decoder: Decoder, latents: Tensor) -> np.ndarray:
    """Decode latents (f, c, h, w), each as the first frame of a video: (f, h, w, 3) uint8 of about SIDE pixels."""
    pictures = []
    for frame in latents:
        [picture] = decoder.stream().decode(frame[None])
        small = F.avg_pool2d(picture.clamp(-1, 1), max(1, round(max(picture.shape[2:]) / SIDE)))
        pictures.append(small.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(pictures).numpy()


def write_preview(stem: Path, frames: np.ndarray, *, fps: Fraction) -> None:
    """Write frames (f, h, w, 3) uint8 as an animation, `stem`.webp, and as a contact sheet, `stem`.png.

    Each file appears when it is complete. Raises OSError, an error of FFmpeg, or OutputError.
    """
    sheet = ContactSheet(stem.with_suffix(".png"), frames_total=len(frames))
    for index in sheet.frames:
        sheet.add(frames[index])
    sheet.save()
    target = stem.with_suffix(".webp")
    unfinished = temporary(target, f"{os.getpid()}.part")
    try:
        _write_animation(unfinished, frames, fps)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_animation(path: Path, frames: np.ndarray, fps: Fraction) -> None:
    # the fastest of libwebp's methods: a preview is looked at once
    options = {"compression_level": "0", "quality": "70"}
    with av.open(file_url(path), "w", format="webp", options={"loop": "0"}) as container:
        stream = container.add_stream("libwebp_anim", rate=fps, options=options)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _with_one(latents: Tensor) -> Tensor:
    """Append a channel of ones: (f, c, h, w) to (f, h, w, c + 1)."""
    return F.pad(latents.float().permute(0, 2, 3, 1), (0, 1), value=1.0)
