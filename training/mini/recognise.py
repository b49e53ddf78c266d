"""The world's own recogniser: what does a clip show? Background, colour, kind and motion from pixels alone.

Nothing here is learned. The background is the nearest of rendered landscapes by the medians of the rows.
The subject's paint is more saturated than any landscape, so hue and saturation give its mask and colour;
the mask is compared with rendered masks of every subject; and every motion of the world is fitted to the path of its
centre.
"""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import world
from numpy.typing import NDArray

Array = NDArray[np.float64]
ASPECTS = ("background", "colour", "kind", "motion")
MIN_PIXELS = 60  # of 10,240: less is no subject
TEMPLATE = 32  # side of the square in which masks are compared


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the recogniser sees in a clip; None where it sees nothing.

    steady: the share of the frames that show one subject in the clip's colour.
    """

    background: str
    colour: str | None
    kind: str | None
    motion: str | None
    steady: float


def rgb_to_hsv(clip: world.Clip) -> tuple[Array, Array, Array]:
    """Hue in [0, 6), saturation and value in [0, 1], (f, h, w) each."""
    values = clip.astype(np.float64) / 255
    top, low = values.max(-1), values.min(-1)
    spread = np.maximum(top - low, 1e-6)
    red, green, blue = np.moveaxis(values, -1, 0)
    hue = np.where(
        top == red,
        ((green - blue) / spread) % 6,
        np.where(top == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return hue, (top - low) / np.maximum(top, 1e-6), top


@cache
def landscapes() -> dict[str, Array]:
    """Medians of the rows, (n, h, 3), of 30 landscapes of each background."""
    rng = np.random.default_rng(3)
    profiles = {}
    for name in world.BACKGROUNDS:
        scenes = [replace(world.sample_scene(rng), background=name) for _ in range(30)]
        frames = [np.median(world.background(s, np.zeros(1, np.float32))[0], axis=1) for s in scenes]
        profiles[name] = np.stack(frames).astype(np.float64)
    return profiles


@cache
def hues() -> tuple[tuple[str, ...], Array]:
    """Return the names and hues of the subject's colours."""
    swatches = np.array(list(world.COLOURS.values()), np.uint8)[None]
    return tuple(world.COLOURS), rgb_to_hsv(swatches)[0][0]


def paint_masks(clip: world.Clip) -> NDArray[np.bool_]:
    """Pixels in each of the subject's colours, bool (colours, f, h, w)."""
    hue, saturation, value = rgb_to_hsv(clip)
    _, known = hues()
    distance = np.abs(hue[None] - known[:, None, None, None])
    distance = np.minimum(distance, 6 - distance)
    near = distance.argmin(0)[None] == np.arange(len(known))[:, None, None, None]
    strong = (saturation > 0.66) & (value > 0.42)
    return near & strong[None] & (distance < 0.55)


def centred(mask: NDArray[np.bool_], *, radius: float, x: float, y: float) -> Array:
    """Return the mask resampled into a square of 1.3 radii around (x, y), in heights, cyclic in x: (TEMPLATE,
    TEMPLATE)."""
    height, width = mask.shape
    steps = ((np.arange(TEMPLATE) + 0.5) / TEMPLATE * 2 - 1) * 1.3 * radius
    columns = np.floor((x + steps) * height).astype(int) % width
    rows = np.floor((y + steps) * height).astype(int)
    inside = (rows >= 0) & (rows < height)
    return mask[np.clip(rows, 0, height - 1)][:, columns] * inside[:, None].astype(np.float64)


@cache
def templates() -> tuple[tuple[str, ...], Array]:
    """Return rendered masks of every subject, both facings, three radii, nine shifts: names (n) and unit vectors (n,
    d)."""
    rng = np.random.default_rng(5)
    base = replace(world.sample_scene(rng), motion="standing still", background="snow", colour="red")
    names, vectors = [], []
    for subject in world.SUBJECTS:
        for facing in (-1, 1):
            for radius in (0.20, 0.225, 0.25):
                scene = replace(base, subject=subject, facing=facing, radius=radius, x=0.8, y=0.5)
                mask = paint_masks(world.render(scene, [0.0]))[0, 0]
                x, y = centre(mask)
                for dx in (-1.5, 0.0, 1.5):
                    for dy in (-1.5, 0.0, 1.5):
                        picture = centred(mask, radius=0.225, x=x + dx / 80, y=y + dy / 80)
                        names.append(subject)
                        vectors.append(unit(picture))
    return tuple(names), np.stack(vectors)


def unit(picture: Array) -> Array:
    """Return a picture as a vector of mean 0 and length 1."""
    vector = picture.ravel() - picture.mean()
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Centre of a mask (h, w) in heights: x on the circle that closes left to right, y plain."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    turn = np.exp(2j * math.pi * (columns + 0.5) / width).mean()
    return float(np.angle(turn) / (2 * math.pi) % 1 * width / height), float((rows + 0.5).mean() / height)


def swing(values: Array) -> Array:
    """Differences on the circle of circumference ASPECT, in (-ASPECT / 2, ASPECT / 2]."""
    half = world.ASPECT / 2
    return (values + half) % world.ASPECT - half


def read_motion(xs: Array, ys: Array) -> str:
    """Return the world's motion whose path fits the centres best; xs, ys (f) in heights, NaN where there is no
    subject."""
    seen = np.isfinite(xs)
    t = np.arange(len(xs), dtype=np.float64)[seen]
    x, y = xs[seen], ys[seen]
    path = np.concatenate([[0.0], np.cumsum(swing(np.diff(x)))])
    candidates: list[tuple[float, str]] = []

    def judge(name: str, px: Array, py: Array) -> None:
        """Mean square error, after the best shift in place."""
        dx, dy = path - px, y - py
        candidates.append((float(np.var(dx) + np.var(dy)), name))

    still = np.zeros_like(t)
    for speed in (0.75, 1.0, 1.25):
        judge("moving left", -speed * world.SPEED * t, still)
        judge("moving right", speed * world.SPEED * t, still)
    judge("standing still", still, still)
    for scale in (0.85, 1.0, 1.15):
        for phase in np.arange(0, world.TURN_PERIOD, 1.0):
            turn = 2 * math.pi * (t * scale + phase) / world.TURN_PERIOD
            judge("circling", world.CIRCLE_X * np.cos(turn), world.CIRCLE_Y * np.sin(turn))
            judge("swaying", world.SWAY * np.sin(turn), still)
        for phase in np.arange(0, world.BOUNCE_PERIOD, 0.75):
            turn = math.pi * (t * scale + phase) / world.BOUNCE_PERIOD
            judge("bouncing", still, -world.BOUNCE_HEIGHT * np.abs(np.sin(turn)))
    return min(candidates)[1]


def at_world_size(clip: world.Clip) -> world.Clip:
    """Return a clip (f, 80 n, 128 n, 3) as (f, 80, 128, 3): the mean of each n x n pixels."""
    frames, height, width = clip.shape[:3]
    factor = height // world.HEIGHT
    if (height, width) != (factor * world.HEIGHT, factor * world.WIDTH):
        raise ValueError(f"clips must be a multiple of {world.WIDTH}x{world.HEIGHT}, not {width}x{height}")
    if factor == 1:
        return clip
    cells = clip.reshape(frames, world.HEIGHT, factor, world.WIDTH, factor, 3)
    return np.rint(cells.mean((2, 4))).astype(np.uint8)


def read_clip(clip: world.Clip) -> Reading:
    """Return what a clip (f, 80 n, 128 n, 3) shows."""
    clip = at_world_size(clip)
    rows = np.median(clip.astype(np.float64), axis=(0, 2))
    background = min((float(np.abs(p - rows).mean((1, 2)).min()), name) for name, p in landscapes().items())[
        1
    ]
    names, _ = hues()
    masks = paint_masks(clip)
    counts = masks.sum((2, 3))
    total = counts.sum(1)
    best = int(total.argmax())
    frames = len(clip)
    if total[best] < MIN_PIXELS * frames / 2:
        return Reading(background=background, colour=None, kind=None, motion=None, steady=0.0)
    xs, ys = np.full(frames, np.nan), np.full(frames, np.nan)
    kinds: Counter[str] = Counter()
    known, vectors = templates()
    steady = 0
    for i in range(frames):
        if counts[best, i] < MIN_PIXELS:
            continue
        xs[i], ys[i] = centre(masks[best, i])
        picture = unit(centred(masks[best, i], radius=0.225, x=xs[i], y=ys[i]))
        scores = vectors @ picture
        kinds[known[int(scores.argmax())]] += 1
        steady += counts[best, i] > 0.8 * counts[:, i].sum() and scores.max() > 0.45
    return Reading(
        background=background,
        colour=names[best],
        kind=kinds.most_common(1)[0][0] if kinds else None,
        motion=read_motion(xs, ys) if frames > 2 and np.isfinite(xs).sum() > frames / 2 else None,
        steady=steady / frames,
    )


def right(reading: Reading, scene: world.Scene) -> dict[str, bool]:
    """Which of the four aspects agree with the scene."""
    return {
        "background": reading.background == scene.background,
        "colour": reading.colour == scene.colour,
        "kind": reading.kind == scene.subject,
        "motion": reading.motion == scene.motion,
    }


def shares(readings: Sequence[Reading], scenes: Sequence[world.Scene]) -> dict[str, float]:
    """Share right of each aspect and of all four at once, and the mean of `steady`."""
    table = [right(r, s) for r, s in zip(readings, scenes, strict=True)]
    figures = {name: float(np.mean([row[name] for row in table])) for name in ASPECTS}
    figures["all"] = float(np.mean([all(row.values()) for row in table]))
    figures["steady"] = float(np.mean([r.steady for r in readings]))
    figures["n"] = len(table)
    return figures


def mistakes(
    readings: Sequence[Reading], scenes: Sequence[world.Scene]
) -> dict[str, Counter[tuple[str, str | None]]]:
    """Count the pairs (expected, seen) that differ, for each aspect."""
    wrong: dict[str, Counter[tuple[str, str | None]]] = {name: Counter() for name in ASPECTS}
    for reading, scene in zip(readings, scenes, strict=True):
        for name, expected in zip(
            ASPECTS, (scene.background, scene.colour, scene.subject, scene.motion), strict=True
        ):
            seen = getattr(reading, name)
            if seen != expected:
                wrong[name][expected, seen] += 1
    return wrong


def main() -> None:
    """Print the accuracy on rendered clips, and on the same clips passed through an autoencoder."""
    parser = argparse.ArgumentParser(description="accuracy of the recogniser on rendered clips")
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--vae", type=Path, help="folder of an autoencoder to pass the clips through as well")
    args = parser.parse_args()
    rng = np.random.default_rng(77)
    scenes = [world.sample_scene(rng) for _ in range(args.clips)]
    readings = [read_clip(world.render(scene, np.arange(16))) for scene in scenes]
    print("rendered", shares(readings, scenes))
    print({name: dict(count) for name, count in mistakes(readings, scenes).items()})
    if args.vae is None:
        return
    import torch
    from common import picture_height, to_frames, to_unit
    from diffusers import AutoencoderKL

    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    height = picture_height(vae)
    readings = []
    for scene in scenes:
        pictures = to_unit(world.render(scene, np.arange(16), height=height))
        with torch.no_grad():
            through = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
        readings.append(read_clip(to_frames(through)))
    print("through the autoencoder", shares(readings, scenes))
    print({name: dict(count) for name, count in mistakes(readings, scenes).items()})


if __name__ == "__main__":
    main()
