"""Synthetic videos whose motion, seams, drift, cuts and repetition are known: (f, h, w, 3) uint8."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from vinfinity.config import VideoConfig, choose_format
from vinfinity.media.writer import VideoWriter

HEIGHT, WIDTH, FPS = 96, 160, 24


def texture(seed: int = 0, *, height: int = HEIGHT, width: int = WIDTH, margin: int = 0) -> np.ndarray:
    """Smooth random colours, (height, width + margin, 3) float32 of 30 to 225."""
    noise = np.random.default_rng(seed).normal(size=(height, width + margin, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 195 + 30


def panning(frames: int = 96, *, speed: float = 1.0, seed: int = 0, **size: int) -> np.ndarray:
    """Return frames of a camera that pans right over a texture by `speed` pixels per frame; the picture moves left."""
    width = size.get("width", WIDTH)
    whole = texture(seed, margin=int(frames * abs(speed)) + 2, **size)
    shots = []
    for index in range(frames):
        move = np.array([[1, 0, -index * speed], [0, 1, 0]], dtype=np.float32)
        shots.append(cv2.warpAffine(whole, move, (width, whole.shape[0]), flags=cv2.INTER_LINEAR))
    return to_frames(np.stack(shots))


def changed(video: np.ndarray, change: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Each frame, as float32, through `change(index, frame)`."""
    return to_frames(np.stack([change(index, frame.astype(np.float32)) for index, frame in enumerate(video)]))


def to_frames(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype(np.uint8)


def save(path: Path, frames: np.ndarray, *, fps: int = FPS, crf: int = 4) -> Path:
    """Return a video file, MP4 or WebM by its name, that is close to lossless."""
    path.parent.mkdir(exist_ok=True)
    config = VideoConfig(crf=crf, pixel_format="yuv444p")
    _, height, width, _ = frames.shape
    with VideoWriter(
        path, choose_format(str(path), config), width=width, height=height, fps=fps, metadata={}
    ) as mp4:
        for frame in frames:
            mp4.write(frame)
    return path


def truncate(path: Path, share: float = 0.5) -> Path:
    """Keep this share of a video's frames, and none of the file after them, as a copy that was interrupted does."""
    with av.open(str(path)) as container:
        positions = sorted(packet.pos for packet in container.demux(video=0) if packet.pos is not None)
    path.write_bytes(path.read_bytes()[: positions[round(len(positions) * share)]])
    return path
