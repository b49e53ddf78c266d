"""Decoding and encoding, alone and together, from random latents to an MP4: time, and memory during it."""

import itertools
import os
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vinfinity.bench.latents import FileLatents
from vinfinity.config import DecodeConfig, VideoConfig, choose_format, parse_size
from vinfinity.media.blocks import Blocks, check_tile, plan_blocks
from vinfinity.media.decode import decode_frames, geometry_of
from vinfinity.media.video import VideoFiles, VideoSpec, write_video
from vinfinity.media.writer import VideoWriter
from vinfinity.models.decoder import Decoder
from vinfinity.models.geometry import LatentGeometry
from vinfinity.parallel.ranks import Ranks
from vinfinity.system.folders import temporary_folder
from vinfinity.system.progress import Progress
from vinfinity.weights.card import read_card
from vinfinity.weights.load import check_decoder, load_decoder

FPS = 24
# bytes of pictures that are encoded repeatedly when encoding is timed alone
PICTURE_BYTES = 64 * 2**20
# the share of the video after which the memory of encoder and allocator no longer grows
WARM_UP = 0.25


@dataclass(frozen=True)
class Cost:
    """What a measurement took, in seconds: wall time, and processor time of all threads."""

    seconds: float
    processor: float


@dataclass(frozen=True)
class Round:
    """The same video decoded only, encoded only, and both at the same time, as in a run."""

    decoding: Cost
    encoding: Cost
    together: Cost

    @property
    def larger(self) -> float:
        return max(self.decoding.seconds, self.encoding.seconds)


@dataclass(frozen=True)
class DecodingFigures:
    """All rounds of a measurement.

    resident: (first frame, resident memory in bytes when its block was read) while decoding and encoding.
    """

    decoder: str
    device: str
    cores: int
    frames: int
    size: tuple[int, int]
    blocks: Blocks
    rounds: tuple[Round, ...]
    resident: tuple[tuple[int, int], ...]

    def ratio(self, to: Callable[[Round], float]) -> float:
        """Return the time of both together, divided by what `to` returns: the median over the rounds."""
        return statistics.median(round_.together.seconds / to(round_) for round_ in self.rounds)

    @property
    def of_decoding(self) -> float:
        return self.ratio(lambda round_: round_.decoding.seconds)

    @property
    def of_larger(self) -> float:
        return self.ratio(lambda round_: round_.larger)

    @property
    def of_sum(self) -> float:
        return self.ratio(lambda round_: round_.decoding.seconds + round_.encoding.seconds)

    @property
    def growth(self) -> float:
        """Growth of resident memory in bytes per frame, by least squares over the last three quarters of the video."""
        return slope([(frame, size) for frame, size in self.resident if frame >= WARM_UP * self.frames])


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through points (x, y), by least squares; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    x, y = np.array(points, dtype=float).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())


class MonitoredLatents:
    """Latents from a file. Records the memory of the process whenever a block of them is read."""

    def __init__(self, path: Path, geometry: LatentGeometry) -> None:
        self.resident: list[tuple[int, int]] = []
        self._source, self._geometry = FileLatents(path), geometry

    def read(self, frames: range) -> Tensor:
        """Read latent frames, see `LatentSource`."""
        self.resident.append((self._geometry.frame_span(frames).start, resident_bytes()))
        return self._source.read(frames)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes (Linux)."""
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
) -> DecodingFigures:
    """Decode the random latents of `frames` frames into an MP4 that is deleted, with the settings of a run.

    decoder: folder of an autoencoder, None for the model's own. size: (width, height) in pixels, None for the model's.
    Raises InputError.
    """
    card = read_card(model)
    check_tile(decode, card.geometry)
    folder = card.folder / "vae"
    if decoder is not None:
        folder = decoder
        check_decoder(folder, card.geometry)
    width, height = size or parse_size(str(card.defaults["size"]))
    latent = card.geometry.latent_size((width, height))
    ranks = Ranks.of_one(device)
    network = load_decoder(folder, device=ranks.device, dtype=torch.float32)
    with temporary_folder() as scratch:
        path = scratch / "latents.safetensors"
        generator = torch.Generator().manual_seed(0)
        shape = 1, latent[0], card.geometry.latent_frames(frames), *latent[1:]
        save_file({"latents": torch.randn(shape, generator=generator)}, path)
        bench = _Bench(network, path, frames, latent, (width, height), decode, ranks)
        bench.warm_up()
        measured = [bench.measure() for _ in range(rounds)]
    return DecodingFigures(
        decoder=str(folder),
        device=str(ranks.device),
        cores=len(os.sched_getaffinity(0)),
        frames=frames,
        size=(width, height),
        blocks=bench.blocks,
        rounds=tuple(round_ for round_, _ in measured),
        resident=tuple(measured[-1][1]),
    )


class _Bench:
    """One video to decode, to encode, and to do both with."""

    def __init__(
        self,
        network: Decoder,
        path: Path,
        frames: int,
        latent: tuple[int, int, int],
        size: tuple[int, int],
        decode: DecodeConfig,
        ranks: Ranks,
    ) -> None:
        self.network, self.path, self.frames = network, path, frames
        self.latent, self.size, self.ranks = latent, size, ranks
        self.decode, self.video, self.format = (
            decode,
            path.with_suffix(".mp4"),
            choose_format(None, VideoConfig()),
        )
        self.blocks = plan_blocks(decode, network.config, latent[1:])
        self._pictures: list[np.ndarray] = []

    def warm_up(self) -> None:
        """Decode a few blocks, and stores pictures of them for encoding."""
        count = max(1, PICTURE_BYTES // (3 * self.size[0] * self.size[1]))
        block = self.blocks.frames * self.network.config.time_downscale
        few = min(self.frames, max(2 * block, min(count, 64)))
        self._pictures = [picture.copy() for picture in self._decoded(few)][:count]

    def measure(self) -> tuple[Round, list[tuple[int, int]]]:
        """Measure one round, and the memory by frame while decoding and encoding."""
        source = MonitoredLatents(self.path, geometry_of(self.network))
        round_ = Round(
            decoding=_cost(lambda: deque(self._decoded(self.frames), maxlen=0)),
            encoding=_cost(self._encode),
            together=_cost(lambda: self._write(source)),
        )
        return round_, source.resident

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
        with VideoWriter(self.video, self.format, width=width, height=height, fps=FPS) as mp4:
            for picture in itertools.islice(itertools.cycle(self._pictures), self.frames):
                mp4.write(picture)

    def _write(self, source: MonitoredLatents) -> None:
        write_video(
            self.network,
            source,
            VideoSpec(self.frames, latent=self.latent, size=self.size, fps=FPS, format=self.format),
            VideoFiles(self.video),
            decode=self.decode,
            ranks=self.ranks,
            progress=Progress(enabled=False),
        )


def _cost(work: Callable[[], object]) -> Cost:
    seconds, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(seconds=time.perf_counter() - seconds, processor=time.process_time() - processor)
