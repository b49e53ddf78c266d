"""Cheap figures of a video, measured while it is decoded: no second pass, and no package but NumPy and torch.

They show whether something deserves a closer look with `vinfinity evaluate`. Dims: F frames of the video, f latent
frames that are read, c channels, h w height and width.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vinfinity.media.curves import Seams, end_to_end, find_seams
from vinfinity.media.latents import LatentSource

# approximate number of rows and columns that are sampled in a frame
SAMPLED = 120
# warn of a border that changes more than every other pair, and at least this many times as much as their mean
SEAM_RATIO = 1.5
# warn of drifts: brightness in levels, sharpness and saturation in percent of the beginning
BRIGHTNESS_DRIFT, SHARPNESS_DRIFT, SATURATION_DRIFT = 25.0, 40.0, 40.0
# warn if adjacent frames differ by less, in levels
STILL_CHANGE = 0.1
DIGITS = 4


@dataclass(frozen=True)
class VideoFigures:
    """Figures of the decoded frames and of the latents, for run.json; warnings, one line each, for people.

    change: the mean difference of adjacent frames, in levels of 0 to 255; None if fewer than two were decoded.
    """

    frames: Mapping[str, object]
    latents: Mapping[str, object]
    change: float | None
    seam_ratio: float | None
    warnings: tuple[str, ...]

    def as_record(self) -> dict[str, object]:
        """Return the figures as run.json holds them."""
        return {"frames": dict(self.frames), "latents": dict(self.latents)}


class FrameWatch:
    """Measures decoded frames, which it is given in order.

    frames: the length of the video, whose first frames may never be given.
    """

    def __init__(self, frames: int) -> None:
        self._curves = {
            name: np.full(frames, np.nan) for name in ("change", "brightness", "saturation", "sharpness")
        }
        self._before: np.ndarray | None = None

    def add(self, index: int, picture: np.ndarray) -> None:
        """Measure a frame. picture: (h, w, 3), uint8 or uint16."""
        scale = 1.0 if picture.dtype == np.uint8 else 1 / 257
        rows, columns = (max(1, side // SAMPLED) for side in picture.shape[:2])
        small = picture[::rows, ::columns].astype(np.float32) * scale
        if self._before is not None:
            self._curves["change"][index] = np.abs(small - self._before).mean()
        self._before = small
        self._curves["brightness"][index] = small.mean()
        self._curves["saturation"][index] = (small.max(axis=2) - small.min(axis=2)).mean()
        # adjacent pixels of the full picture: those of the small one differ even in a blurred picture
        fine = picture[::rows, :, 1].astype(np.float32) * scale
        self._curves["sharpness"][index] = np.abs(np.diff(fine, axis=1)).mean() if fine.shape[1] > 1 else 0.0

    @property
    def curves(self) -> Mapping[str, np.ndarray]:
        """A number per frame; NaN for frames that were not given. change is a curve of pairs (curves.py)."""
        return self._curves


class LatentWatch:
    """Measures latents as they are read, in any order. frames: the number of latent frames in the video."""

    def __init__(self, source: LatentSource, frames: int) -> None:
        self._source = source
        self.change, self.spread = np.full(frames, np.nan), np.full(frames, np.nan)
        # the latents of frames whose neighbour has not been read yet, by frame and neighbour
        self._edges: dict[tuple[int, int], Tensor] = {}

    def read(self, frames: range) -> Tensor:
        """Read latents and measure them, see `LatentSource`."""
        latents = self._source.read(frames)
        inside = (latents[:, 1:] - latents[:, :-1]).abs().mean(dim=(0, 2, 3))
        self.change[frames.start + 1 : frames.stop] = inside.numpy()
        self.spread[frames.start : frames.stop] = latents.std(dim=(0, 2, 3), correction=0).numpy()
        self._meet(frames.start - 1, frames.start, latents[:, 0])
        self._meet(frames.stop, frames.stop - 1, latents[:, -1])
        # blocks may overlap and then contain the neighbour
        self._edges = {pair: edge for pair, edge in self._edges.items() if self._is_open(*pair)}
        return latents

    def _meet(self, neighbour: int, frame: int, latent: Tensor) -> None:
        """Compare a frame at the end of a block with its neighbour, or keep it until that is read."""
        other = self._edges.get((neighbour, frame))
        if other is not None:
            self.change[max(frame, neighbour)] = float((latent - other).abs().mean())
        elif self._is_open(neighbour, frame):
            self._edges[frame, neighbour] = latent.clone()

    def _is_open(self, neighbour: int, frame: int) -> bool:
        """Return whether two adjacent frames are both in the video and have not been compared yet."""
        border = max(frame, neighbour)
        return 0 < border < len(self.change) and bool(np.isnan(self.change[border]))


@dataclass(frozen=True)
class VideoWatch:
    """What was measured of a video while it was decoded."""

    frames: FrameWatch
    latents: LatentWatch

    def figures(
        self,
        *,
        borders: Collection[int],
        latent_borders: Collection[int],
        scenes: Collection[int],
        latent_scenes: Collection[int],
        one_prompt: bool,
    ) -> VideoFigures:
        """Return the figures and warnings of the video.

        borders: the first frames after borders of ranks and edits. scenes: the first frames after intended cuts.
        latent_borders, latent_scenes: both in latent frames. one_prompt: whether the whole video shows one thing, so
        that drift is unwanted.
        """
        curves = self.frames.curves
        seams = find_seams(curves["change"], borders, without=scenes)
        latent_seams = find_seams(self.latents.change, latent_borders, without=latent_scenes)
        change = _mean(curves["change"])
        brightness = _difference(curves["brightness"])
        percent = {name: _percent(curves[name]) for name in ("sharpness", "saturation")}
        frames = {
            "change": _rounded(change),
            **_seam_figures(seams),
            "drift": {
                "brightness": _rounded(brightness),
                **{name: _rounded(value) for name, value in percent.items()},
            },
        }
        latents = {
            "change": _rounded(_mean(self.latents.change)),
            **_seam_figures(latent_seams),
            "drift": {"spread": _rounded(_percent(self.latents.spread))},
        }
        warnings = [*_seam_warnings(seams), *_still_warnings(change)]
        if one_prompt:
            warnings += _drift_warnings(brightness, percent)
        return VideoFigures(
            frames=frames,
            latents=latents,
            change=change,
            seam_ratio=None if seams is None else seams.ratio,
            warnings=tuple(warnings),
        )


def _seam_warnings(seams: Seams | None) -> list[str]:
    return [
        f"frame {seam.frame} begins at a border and changes {seam.ratio:.1f} times as much as others"
        for seam in (seams.seams if seams is not None else ())
        if seam.percentile == 100 and (seam.ratio or 0) >= SEAM_RATIO
    ]


def _still_warnings(change: float | None) -> list[str]:
    if change is None or change >= STILL_CHANGE:
        return []
    return [f"hardly anything moves: adjacent frames differ by {change:.2f} of 255 levels"]


def _drift_warnings(brightness: float | None, percent: Mapping[str, float | None]) -> list[str]:
    lines = []
    if brightness is not None and abs(brightness) >= BRIGHTNESS_DRIFT:
        lines.append(f"brightness drifts by {brightness:+.0f} of 255 levels from the beginning to the end")
    for name, most in (("sharpness", SHARPNESS_DRIFT), ("saturation", SATURATION_DRIFT)):
        value = percent[name]
        if value is not None and abs(value) >= most:
            lines.append(f"{name} drifts by {value:+.0f} % from the beginning to the end")
    return lines


def _seam_figures(seams: Seams | None) -> dict[str, object]:
    if seams is None:
        return {"seam_ratio": None, "seams": []}
    each = [{"frame": seam.frame, "ratio": _rounded(seam.ratio)} for seam in seams.seams]
    return {"seam_ratio": _rounded(seams.ratio), "seams": each}


def _mean(curve: np.ndarray) -> float | None:
    known = curve[np.isfinite(curve)]
    return float(known.mean()) if len(known) else None


def _difference(curve: np.ndarray) -> float | None:
    first, last = end_to_end(curve)
    return last - first if np.isfinite(first) and np.isfinite(last) else None


def _percent(curve: np.ndarray) -> float | None:
    first, _ = end_to_end(curve)
    difference = _difference(curve)
    return None if difference is None or first <= 1e-6 else difference / first * 100


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
