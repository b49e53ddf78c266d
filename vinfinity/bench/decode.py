"""From random latents to a video: what decoding takes, what encoding takes, both at once, and the memory on the way."""

import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vinfinity.config import DecodeConfig, VideoConfig, parse_size
from vinfinity.media.blocks import Blocks, check_tile, plan_blocks
from vinfinity.media.decode import decode_frames
from vinfinity.media.latents import FileLatents
from vinfinity.media.mp4 import Mp4Writer
from vinfinity.media.video import write_video
from vinfinity.models.unet3d.taesd import LatentDecoder
from vinfinity.parallel.ranks import Ranks, pick_device
from vinfinity.system.progress import Progress
from vinfinity.weights.card import read_card
from vinfinity.weights.load import check_decoder, load_decoder

FPS = 24
KEPT = 64 * 2**20  # bytes of pictures that are encoded over and over when encoding is timed alone
WARM = 0.25  # the part of the video by which encoder and allocator hold what they will hold


@dataclass(frozen=True)
class Cost:
    """seconds: by the clock. processor: seconds of processor time, over all threads."""

    seconds: float
    processor: float


@dataclass(frozen=True)
class Round:
    """The same video decoded alone, encoded alone, and both at once, as a run does it."""

    decoding: Cost
    encoding: Cost
    together: Cost

    @property
    def larger(self) -> float:
        return max(self.decoding.seconds, self.encoding.seconds)


@dataclass(frozen=True)
class Figures:
    """resident: (frame, bytes of memory that the process held when that frame's block was read), both at once."""

    decoder: str
    device: str
    cores: int
    frames: int
    size: tuple[int, int]
    blocks: Blocks
    rounds: tuple[Round, ...]
    resident: tuple[tuple[int, int], ...]

    def ratio(self, to: Callable[[Round], float]) -> float:
        """Seconds of both at once over those that `to` gives: the median over the rounds."""
        return statistics.median(one.together.seconds / to(one) for one in self.rounds)

    @property
    def of_decoding(self) -> float:
        return self.ratio(lambda one: one.decoding.seconds)

    @property
    def of_larger(self) -> float:
        return self.ratio(lambda one: one.larger)

    @property
    def of_sum(self) -> float:
        return self.ratio(lambda one: one.decoding.seconds + one.encoding.seconds)

    @property
    def growth(self) -> float:
        """Bytes of resident memory a frame, by least squares over the last three quarters of the video."""
        return slope([(frame, size) for frame, size in self.resident if frame >= WARM * self.frames])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through points (x, y), by least squares; 0 through fewer than two."""
    if len(points) < 2:
        return 0.0
    x, y = np.array(points, dtype=float).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())


class Watched:
    """Latents from a file; notes what memory the process holds whenever a block of them is read."""

    def __init__(self, path: Path) -> None:
        self.resident: list[tuple[int, int]] = []
        self._source = FileLatents(path)

    def read(self, frames: range) -> Tensor:
        self.resident.append((frames.start, resident()))
        return self._source.read(frames)


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_decoding(
    model: str,
    *,
    decoder: Path | None,
    frames: int,
    size: tuple[int, int] | None,
    rounds: int,
    device: str,
    decode: DecodeConfig,
) -> Figures:
    """Takes `frames` random latents to an MP4 that is thrown away, by the settings of a run.

    decoder: another one than the model's own. size: (width, height), the model's where None. Raises InputError.
    """
    card = read_card(model)
    check_tile(decode, factor=card.pixels)
    folder = card.folder / "vae"
    if decoder is not None:
        folder = decoder
        check_decoder(folder, channels=card.latent_channels, pixels=card.pixels)
    width, height = size or parse_size(str(card.defaults["size"]))
    latent = (card.latent_channels, -(-height // card.pixels), -(-width // card.pixels))
    ranks = Ranks(device=pick_device(device))
    network = load_decoder(folder, device=ranks.device, dtype=torch.float32)
    with tempfile.TemporaryDirectory(prefix="vinfinity-") as scratch:
        path = Path(scratch) / "latents.safetensors"
        generator = torch.Generator().manual_seed(0)
        save_file({"latents": torch.randn(1, latent[0], frames, *latent[1:], generator=generator)}, path)
        bench = _Bench(network, path, frames, latent, (width, height), decode, ranks)
        bench.warm_up()
        made = [bench.round() for _ in range(rounds)]
    return Figures(
        decoder=str(folder),
        device=str(ranks.device),
        cores=len(os.sched_getaffinity(0)),
        frames=frames,
        size=(width, height),
        blocks=bench.blocks,
        rounds=tuple(one for one, _ in made),
        resident=tuple(made[-1][1]),
    )


class _Bench:
    """One video, made in parts and as a whole."""

    def __init__(
        self,
        network: LatentDecoder,
        path: Path,
        frames: int,
        latent: tuple[int, int, int],
        size: tuple[int, int],
        decode: DecodeConfig,
        ranks: Ranks,
    ) -> None:
        self.network, self.path, self.frames = network, path, frames
        self.latent, self.size, self.ranks = latent, size, ranks
        self.decode, self.video, self.codec = decode, path.with_suffix(".mp4"), VideoConfig()
        self.blocks = plan_blocks(decode, network.config, latent[1:])
        self._pictures: list[np.ndarray] = []

    def warm_up(self) -> None:
        """Decodes a few blocks, and keeps pictures of them to encode."""
        count = max(1, KEPT // (3 * self.size[0] * self.size[1]))
        few = min(self.frames, max(2 * self.blocks.frames, min(count, 64)))
        self._pictures = [picture.copy() for picture in self._decoded(few)][:count]

    def round(self) -> tuple[Round, list[tuple[int, int]]]:
        source = Watched(self.path)
        made = Round(
            decoding=_cost(lambda: deque(self._decoded(self.frames), maxlen=0)),
            encoding=_cost(self._encode),
            together=_cost(lambda: self._write(source)),
        )
        return made, source.resident

    def _decoded(self, frames: int) -> Iterator[np.ndarray]:
        return decode_frames(
            self.network,
            FileLatents(self.path),
            frames=range(frames),
            latent=self.latent,
            size=self.size,
            blocks=self.blocks,
            ranks=self.ranks,
        )

    def _encode(self) -> None:
        width, height = self.size
        with Mp4Writer(self.video, width=width, height=height, fps=FPS, config=self.codec) as mp4:
            for picture in itertools.islice(itertools.cycle(self._pictures), self.frames):
                mp4.write(picture)

    def _write(self, source: Watched) -> None:
        write_video(
            self.network,
            source,
            video=self.video,
            sheet=None,
            frames=self.frames,
            codec=self.codec,
            decode=self.decode,
            latent=self.latent,
            size=self.size,
            fps=FPS,
            metadata={},
            ranks=self.ranks,
            progress=Progress(enabled=False),
        )


def _cost(work: Callable[[], object]) -> Cost:
    seconds, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(seconds=time.perf_counter() - seconds, processor=time.process_time() - processor)


def decode_table(figures: Figures) -> list[tuple[str, str]]:
    """Rows for people."""
    width, height = figures.size
    blocks = figures.blocks
    tile = "" if blocks.tile is None else f", tiles of {blocks.tile}x{blocks.tile} latent positions"
    rows = [
        ("video", f"{figures.frames} frames of {width}x{height}"),
        ("decoder", f"{figures.decoder}, on {figures.device}"),
        ("blocks", f"{blocks.frames} frames at once{tile}, {blocks.bytes / 2**20:,.0f} MiB"),
    ]
    for name in ("decoding", "encoding", "together"):
        costs = [getattr(one, name) for one in figures.rounds]
        seconds, processor = (
            statistics.median(getattr(cost, what) for cost in costs) for what in ("seconds", "processor")
        )
        rows.append(
            (
                name,
                f"{seconds:.1f} s, {1000 * seconds / figures.frames:.1f} ms a frame ({processor:.1f} s of processor)",
            )
        )
    held = [size for _, size in figures.resident]
    return [
        *rows,
        ("together / decoding", f"{figures.of_decoding:.3f}"),
        ("together / larger", f"{figures.of_larger:.3f}, {figures.cores} processor cores"),
        ("together / sum", f"{figures.of_sum:.3f}"),
        (
            "resident memory",
            f"{held[0] / 2**20:,.0f} MiB at the first block, {held[-1] / 2**20:,.0f} at the last",
        ),
        ("its growth", f"{figures.growth:+,.0f} bytes a frame over the last three quarters"),
    ]


def write_json(path: Path, figures: Figures) -> None:
    """The figures as JSON."""
    ratios = {name: getattr(figures, name) for name in ("of_decoding", "of_larger", "of_sum")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(asdict(figures) | ratios | {"growth": figures.growth}, indent=2) + "\n", encoding="utf-8"
    )
