"""The training world of the model `mini`: procedural clips of one subject that moves in front of a landscape.

A `Scene` is a handful of words and numbers. `render` draws it at any times (in frames, also thousands of
frames on: every motion is periodic), `caption` says what it shows, and `subject_mask` says where the
subject is.

Coordinates: x runs from 0 (left) to `ASPECT` (right), y from 0 (top) to 1 (bottom); one unit is the
picture's height. Subjects are drawn in their own frame (u, v), where the subject's radius is 1.

The world is built so that little is left to chance: the subject is a fifth of the height and always in view
(what leaves at one side enters at the other), its colours are more saturated than anything in a landscape,
and each motion has one speed, so that a few neighbouring frames say which one it is.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Clip = NDArray[np.uint8]

WIDTH, HEIGHT = 128, 80
ASPECT = WIDTH / HEIGHT

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 26, 36),
    "yellow": (255, 208, 0),
    "green": (0, 146, 62),
    "blue": (24, 70, 232),
    "pink": (242, 52, 178),
}
SUBJECTS = ("ball", "star", "heart", "car", "boat", "fish")
MOTIONS = ("moving left", "moving right", "bouncing", "circling", "swaying", "standing still")
BACKGROUNDS: dict[str, str] = {
    "grass": "over green grass",
    "sea": "over the blue sea",
    "desert": "in the sandy desert",
    "night": "in the starry night",
    "snow": "over white snow",
}

MOTION_VARIANTS: dict[str, tuple[str, ...]] = {
    "moving left": ("moving to the left", "going left"),
    "moving right": ("moving to the right", "going right"),
    "bouncing": ("bouncing up and down", "jumping"),
    "circling": ("circling around", "going round in circles"),
    "swaying": ("swaying from side to side", "swinging"),
    "standing still": ("staying still", "resting"),
}
BACKGROUND_VARIANTS: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "over grass"),
    "sea": ("on the sea", "over the sea"),
    "desert": ("in the desert", "over the desert"),
    "night": ("at night", "in the night"),
    "snow": ("in the snow", "over the snow"),
}

SPEED = 0.06  # heights a frame, of moving left and right: 4.8 pixels, once across in 27 frames
BOUNCE_PERIOD, BOUNCE_HEIGHT = 12.0, 0.42
TURN_PERIOD = 20.0  # frames a turn of circling and a swing of swaying
CIRCLE_X, CIRCLE_Y, SWAY = 0.32, 0.20, 0.40

SKIES = {
    "grass": ((120, 190, 248), (212, 236, 252)),
    "sea": ((150, 205, 248), (252, 228, 205)),
    "desert": ((252, 190, 140), (255, 232, 186)),
    "night": ((52, 46, 112), (104, 88, 150)),
    "snow": ((168, 194, 220), (230, 238, 246)),
}
HILLS = {"grass": (128, 190, 140), "desert": (230, 168, 116), "night": (70, 66, 120), "snow": (196, 212, 230)}
GROUNDS = {
    "grass": ((168, 222, 116), (128, 190, 88)),
    "sea": ((110, 196, 224), (70, 150, 190)),
    "desert": ((246, 218, 162), (222, 180, 120)),
    "night": ((78, 96, 122), (52, 66, 92)),
    "snow": ((250, 252, 255), (218, 230, 244)),
}
SUN = {"grass": (255, 250, 214), "sea": (255, 250, 214), "desert": (255, 248, 210), "night": (252, 246, 214)}
PAINT = {"white": (252, 250, 244), "dark": (40, 34, 48), "glass": (196, 228, 244)}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip in words and numbers. Lengths are in heights, phase in frames."""

    colour: str
    subject: str
    motion: str
    background: str
    radius: float
    x: float
    y: float
    phase: float
    facing: int
    horizon: float
    sun_x: float
    hills: float
    seed: int


def sample_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene, uniform over the words."""
    motion = MOTIONS[rng.integers(len(MOTIONS))]
    middle = motion in ("circling", "swaying")
    facing = {"moving left": -1, "moving right": 1}.get(motion, 1 if rng.random() < 0.5 else -1)
    y = {"circling": 0.5, "bouncing": 0.74}.get(motion, rng.uniform(0.46, 0.66))
    return Scene(
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        subject=SUBJECTS[rng.integers(len(SUBJECTS))],
        motion=motion,
        background=list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        radius=rng.uniform(0.21, 0.24),
        x=rng.uniform(0.65, 0.95) if middle else rng.uniform(0.35, 1.25),
        y=y,
        phase=rng.uniform(0.0, 240.0),
        facing=facing,
        horizon=rng.uniform(0.52, 0.58),
        sun_x=rng.uniform(0.15, 1.45),
        hills=rng.uniform(0.0, 2 * math.pi),
        seed=int(rng.integers(1 << 30)),
    )


def article(word: str) -> str:
    """Return the indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def caption(scene: Scene) -> str:
    """Return what the scene shows, in the grammar's plain form: "a red ball bouncing over green grass"."""
    place = BACKGROUNDS[scene.background]
    return f"{article(scene.colour)} {scene.colour} {scene.subject} {scene.motion} {place}"


def caption_variant(scene: Scene, *, rng: np.random.Generator) -> str:
    """Return a caption for training: mostly the plain form, else another wording of the motion or of the place."""
    motion, place = scene.motion, BACKGROUNDS[scene.background]
    if rng.random() < 0.2:
        motion = str(rng.choice(MOTION_VARIANTS[scene.motion]))
    if rng.random() < 0.2:
        place = str(rng.choice(BACKGROUND_VARIANTS[scene.background]))
    return f"{article(scene.colour)} {scene.colour} {scene.subject} {motion} {place}"


def mirrored(scene: Scene) -> Scene:
    """Return the scene that the mirror image of a clip shows, as far as words go (left becomes right)."""
    swap = {"moving left": "moving right", "moving right": "moving left"}
    return replace(scene, motion=swap.get(scene.motion, scene.motion), facing=-scene.facing)


def track(scene: Scene, times: Sequence[float] | Array) -> tuple[Array, Array]:
    """Return the subject's centre (x, y) at the times; x lies in [0, ASPECT)."""
    t = np.asarray(times, np.float64) + scene.phase
    x, y = np.full(t.shape, scene.x), np.full(t.shape, scene.y)
    turn = 2 * math.pi * t / TURN_PERIOD
    match scene.motion:
        case "moving left":
            x = x - SPEED * t
        case "moving right":
            x = x + SPEED * t
        case "bouncing":
            y = y - BOUNCE_HEIGHT * np.abs(np.sin(math.pi * t / BOUNCE_PERIOD))
        case "circling":
            x, y = x + CIRCLE_X * np.cos(turn), y + CIRCLE_Y * np.sin(turn)
        case "swaying":
            x = x + SWAY * np.sin(turn)
    return (x % ASPECT).astype(np.float32), y.astype(np.float32)


@lru_cache(maxsize=8)
def pixel_grid(width: int, height: int) -> tuple[Array, Array]:
    """Centres of the pixels, (h, w) each, in heights."""
    xs = (np.arange(width, dtype=np.float32) + 0.5) * (ASPECT / width)
    ys = (np.arange(height, dtype=np.float32) + 0.5) / height
    x, y = np.meshgrid(xs, ys)
    return x, y


def _rgb(colour: tuple[int, int, int]) -> Array:
    return np.array(colour, np.float32)


def _mix(a: Array, b: Array, weight: Array) -> Array:
    return a + (b - a) * weight[..., None]


def _cover(distance: Array, *, softness: float) -> Array:
    """Share of a pixel inside a shape, from the signed distance to its edge (negative inside)."""
    return np.clip(0.5 - distance / softness, 0, 1).astype(np.float32)


def background(scene: Scene, times: Array, *, height: int = HEIGHT) -> Array:
    """Return the landscape, (f, h, w, 3) in [0, 255]. Only the sea moves."""
    gx, gy = pixel_grid(round(height * ASPECT), height)
    kind, horizon = scene.background, scene.horizon
    edge = 1.3 / height
    sky = _mix(_rgb(SKIES[kind][0]), _rgb(SKIES[kind][1]), np.clip(gy / horizon, 0, 1))
    if kind == "night":
        rng = np.random.default_rng(scene.seed)
        for _ in range(14):
            px, py, light = rng.uniform(0, ASPECT), rng.uniform(0, horizon - 0.12), rng.uniform(0.6, 1.0)
            spot = _cover(np.hypot(gx - px, gy - py) - 0.008, softness=0.022)
            sky = _mix(sky, _rgb((255, 252, 235)), spot * light)
    if kind in SUN:
        disc = _cover(
            np.hypot(gx - scene.sun_x, gy - 0.14) - 0.075, softness=edge if kind == "night" else 0.05
        )
        sky = _mix(sky, _rgb(SUN[kind]), disc)
    level = np.full_like(gx, horizon)
    if kind != "sea":
        turn = 2 * math.pi * gx / ASPECT
        top = horizon - 0.06 - 0.05 * np.sin(turn + scene.hills)
        sky = _mix(sky, _rgb(HILLS[kind]), _cover(top - gy, softness=edge))
        level = horizon + 0.02 * np.sin(turn + 2 * scene.hills)
    depth = np.clip((gy - horizon) / (1 - horizon), 0, 1)
    ground = _mix(_rgb(GROUNDS[kind][0]), _rgb(GROUNDS[kind][1]), depth)
    shore = _cover(level - gy, softness=edge)
    if kind != "sea":
        still = _mix(sky, ground, shore)
        return np.broadcast_to(still, (len(times), *still.shape))
    tide = 2 * math.pi * (times + scene.phase)[:, None, None] / TURN_PERIOD
    swell = np.sin(2 * math.pi * 2 * gx / ASPECT + tide + 6 * depth) * np.sin(20 * np.sqrt(depth))
    crests = (np.clip(swell, 0, 1) * (0.3 + 0.7 * depth))[..., None] * _rgb((56, 44, 36))
    return sky + (ground + crests - sky) * shore[..., None]


def _segment(u: Array, v: Array, a: tuple[float, float], b: tuple[float, float]) -> Array:
    """Distance to a line segment."""
    (ax, ay), (bx, by) = a, b
    dx, dy = bx - ax, by - ay
    q = np.clip(((u - ax) * dx + (v - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(u - ax - q * dx, v - ay - q * dy)


def _polygon(u: Array, v: Array, points: Sequence[tuple[float, float]]) -> Array:
    """Signed distance to a polygon."""
    nearest, sign = np.full(u.shape, 1e9, np.float32), np.ones(u.shape, np.float32)
    for (ax, ay), (bx, by) in zip(points, [points[-1], *points[:-1]], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, u - ax, v - ay
        q = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (wx - ex * q) ** 2 + (wy - ey * q) ** 2)
        above, below, left = v >= ay, v < by, ex * wy > ey * wx
        sign = np.where((above & below & left) | ~(above | below | left), -sign, sign)
    return sign * np.sqrt(nearest)


STAR = tuple(
    (math.sin(i * math.pi / 5) * size, -math.cos(i * math.pi / 5) * size)
    for i, size in enumerate([1.12, 0.52] * 5)
)
CABIN = ((-0.62, 0.0), (-0.36, -0.66), (0.36, -0.66), (0.62, 0.0))
WINDOW = ((-0.40, -0.08), (-0.25, -0.48), (0.25, -0.48), (0.40, -0.08))
HULL = ((-1.12, 0.18), (1.12, 0.18), (0.72, 0.88), (-0.72, 0.88))
SAIL = ((0.02, -1.08), (0.02, 0.06), (0.88, 0.06))
JIB = ((-0.16, -0.86), (-0.80, 0.06), (-0.16, 0.06))
TAIL = ((-0.40, 0.0), (-1.12, -0.62), (-1.12, 0.62))


def _heart(u: Array, v: Array) -> Array:
    """Signed distance to a heart: two discs and a wedge."""
    discs = np.minimum(np.hypot(u - 0.46, v + 0.38), np.hypot(u + 0.46, v + 0.38)) - 0.54
    return np.minimum(discs, _polygon(u, v, ((-0.93, -0.10), (0.0, -0.38), (0.93, -0.10), (0.0, 1.02))))


def parts(subject: str, u: Array, v: Array) -> list[tuple[Array, str]]:
    """Return the subject's shapes as (signed distance in radii, paint), in the order of painting."""
    match subject:
        case "ball":
            disc = np.hypot(u, v) - 0.96
            band = np.maximum(np.abs(v + 0.3 * u) - 0.20, disc)
            return [(disc, "colour"), (band, "white")]
        case "star":
            return [(_polygon(u, v, STAR) - 0.05, "colour")]
        case "heart":
            return [(_heart(u, v), "colour")]
        case "car":
            body = np.maximum(np.abs(u) - 0.98, np.abs(v - 0.22) - 0.26) - 0.10
            cabin = _polygon(u, v, CABIN) - 0.08
            wheels = np.minimum(np.hypot(u - 0.56, v - 0.58), np.hypot(u + 0.56, v - 0.58))
            return [
                (np.minimum(body, cabin), "colour"),
                (_polygon(u, v, WINDOW), "glass"),
                (wheels - 0.32, "dark"),
                (wheels - 0.13, "white"),
            ]
        case "boat":
            return [
                (_polygon(u, v, SAIL) - 0.02, "white"),
                (_polygon(u, v, JIB) - 0.02, "white"),
                (_polygon(u, v, HULL) - 0.03, "colour"),
            ]
        case "fish":
            body = (np.hypot((u - 0.18) / 0.92, v / 0.68) - 1.0) * 0.72
            eye = np.hypot(u - 0.56, v + 0.14)
            return [
                (np.minimum(body, _polygon(u, v, TAIL) - 0.05), "colour"),
                (eye - 0.22, "white"),
                (eye - 0.11, "dark"),
            ]
    raise ValueError(f"no such subject: {subject!r}; known: {', '.join(SUBJECTS)}")


def paint_subject(scene: Scene, u: Array, v: Array, *, height: int = HEIGHT) -> tuple[Array, Array]:
    """Colour (..., 3) and cover (...) of the subject, outline included, at points of its own frame."""
    u = u * scene.facing
    shapes = parts(scene.subject, u, v)
    softness = 1.3 / (height * scene.radius)
    shade = np.clip(1.06 - 0.16 * v, 0.84, 1.18)[..., None]
    paint = np.broadcast_to(_rgb((44, 38, 54)), (*u.shape, 3))
    union = shapes[0][0]
    for distance, name in shapes:
        union = np.minimum(union, distance)
        fill = np.clip(_rgb(COLOURS[scene.colour]) * shade, 0, 255) if name == "colour" else _rgb(PAINT[name])
        paint = _mix(paint, fill, _cover(distance, softness=softness))
    return paint, _cover(union - 0.07, softness=softness)


def render(scene: Scene, times: Sequence[float] | Array, *, height: int = HEIGHT) -> Clip:
    """Return the scene at the times (in frames), uint8 (f, h, w, 3)."""
    t = np.asarray(times, np.float32)
    clip = np.array(background(scene, t, height=height), np.float32)
    xs, ys = track(scene, t)
    width = round(height * ASPECT)
    gx, gy = pixel_grid(width, height)
    reach = 1.3 * scene.radius
    for frame, x, y in zip(clip, xs, ys, strict=True):
        rows = slice(max(int((y - reach) * height), 0), min(int((y + reach) * height) + 2, height))
        for shift in (-ASPECT, 0.0, ASPECT):
            left, right = int((x + shift - reach) * height), int((x + shift + reach) * height) + 2
            columns = slice(max(left, 0), min(right, width))
            if columns.start >= columns.stop:
                continue
            box = (rows, columns)
            u, v = (gx[box] - x - shift) / scene.radius, (gy[box] - y) / scene.radius
            paint, cover = paint_subject(scene, u, v, height=height)
            frame[box] = _mix(frame[box], paint, cover)
    return np.clip(clip + 0.5, 0, 255).astype(np.uint8)


def subject_mask(
    scene: Scene, times: Sequence[float] | Array, *, width: int, height: int
) -> NDArray[np.bool_]:
    """Cells of a coarse grid that the subject touches, bool (f, height, width): a disc a little larger than
    it."""
    xs, ys = track(scene, times)
    gx, gy = pixel_grid(width, height)
    dx = np.abs(gx[None] - xs[:, None, None])
    dx = np.minimum(dx, ASPECT - dx)
    return np.hypot(dx, gy[None] - ys[:, None, None]) < 1.15 * scene.radius + 0.5 / height


def contact_sheet(rows: Sequence[Sequence[Clip]], path: Path, *, gap: int = 2) -> None:
    """Write rows of frames (h, w, 3) as one PNG."""
    from PIL import Image

    height, width = rows[0][0].shape[:2]
    count = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + gap), count * (width + gap), 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, frame in enumerate(row):
            y, x = i * (height + gap), j * (width + gap)
            sheet[y : y + height, x : x + width] = frame
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def main() -> None:
    """Draw a sheet of scenes that names every word at least once."""
    parser = argparse.ArgumentParser(description="draw a contact sheet of the training world")
    parser.add_argument("--out", type=Path, default=Path("build/mini/pictures/world.png"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    rows = []
    for i in range(12):
        scene = replace(
            sample_scene(rng),
            subject=SUBJECTS[i % len(SUBJECTS)],
            colour=list(COLOURS)[(i + i // 5) % len(COLOURS)],
            background=list(BACKGROUNDS)[i % len(BACKGROUNDS)],
        )
        print(caption(scene))
        rows.append(list(render(scene, np.arange(0, 16, 2))))
    contact_sheet(rows, args.out)


if __name__ == "__main__":
    main()
