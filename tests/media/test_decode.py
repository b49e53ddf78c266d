"""From latents to pictures: sources, blocks, tiles, and encoding in the background."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny as TheirTiny
from oracles.fault_work import CUDA_OUT_OF_MEMORY
from oracles.networks import our_vae
from oracles.processes import no_thread_left
from oracles.reference import configure, fill, relative_error, tiny_vae
from oracles.settings import run_config
from oracles.video import read_video
from safetensors.torch import load_file, save_file

from vinfinity.bench.latents import FileLatents
from vinfinity.config import DecodeConfig, VideoConfig, choose_format, digest
from vinfinity.errors import InputError, OutOfMemoryError, OutputError, VinfinityError
from vinfinity.job import prepare
from vinfinity.job_report import describe
from vinfinity.media.background import consume_in_background
from vinfinity.media.blocks import plan_blocks
from vinfinity.media.decode import decode_block, decode_frames, decode_tiles, one_ahead
from vinfinity.media.latents import LatentSource, TensorLatents
from vinfinity.media.mp4 import read_metadata
from vinfinity.media.video import VideoFiles, VideoSpec, write_video
from vinfinity.models.decoder import Decoder, FrameDecoder
from vinfinity.models.unet3d.configs import TinyConfig, VAEConfig
from vinfinity.models.unet3d.taesd import AutoencoderTiny
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.meter import LiveBytes, Meter
from vinfinity.run import run
from vinfinity.system.progress import Progress

ALONE = Ranks(device=torch.device("cpu"))
Note = Callable[[str, float], None]


def pictures_of(
    decoder: Decoder,
    source: LatentSource,
    *,
    frames: int,
    size: tuple[int, int],
    config: DecodeConfig = DecodeConfig(),  # noqa: B008  (frozen)
) -> Iterator[np.ndarray]:
    latent = (4, -(-size[1] // 8), -(-size[0] // 8))
    blocks = plan_blocks(config, decoder.config, latent[1:])
    return decode_frames(
        decoder, source, frames=range(frames), latent=latent, size=size, blocks=blocks, ranks=ALONE
    )


class Watched:
    """Latents that record which frames are read."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.asked: list[range] = []
        self._latents = TensorLatents(latents)

    def read(self, frames: range) -> torch.Tensor:
        self.asked.append(frames)
        return self._latents.read(frames)


class WithoutMemory(AutoencoderKL):
    """A decoder that runs out of memory."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError(CUDA_OUT_OF_MEMORY)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (DecodeConfig(), "try decode.frames=1, or decode.tile=128, or a machine with more memory"),
        (DecodeConfig(frames=1, tile=128), "try decode.tile=64, or a machine with more memory"),
        (DecodeConfig(frames=1, tile=32), "try a machine with more memory"),
    ],
    ids=str,
)
def test_a_lack_of_memory_in_decoding_is_named_with_settings_of_decoding(
    config: DecodeConfig, remedy: str
) -> None:
    decoder = our_vae(tiny_vae())
    decoder.__class__ = WithoutMemory
    pictures = pictures_of(
        decoder, TensorLatents(torch.zeros(1, 4, 8, 24, 32)), frames=8, size=(256, 192), config=config
    )
    with pytest.raises(OutOfMemoryError) as raised:
        next(pictures)
    assert raised.value.message == (
        f"cpu: out of memory: 944.00 MiB more needed, 61.00 MiB of 23.65 GiB free; {remedy}"
    )


# ---- sources and blocks ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_latents_read_from_a_file_equal_those_in_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 11, 3, 5).to(dtype)
    save_file({"latents": latents, "other": torch.zeros(3)}, tmp_path / "a.safetensors")
    for span in (range(0, 4), range(4, 5), range(8, 11), range(0, 11)):
        from_file = FileLatents(tmp_path / "a.safetensors").read(span)
        assert from_file.dtype == torch.float32
        assert torch.equal(from_file, latents[0, :, span.start : span.stop].float())
        assert torch.equal(from_file, TensorLatents(latents).read(span))


def test_unreadable_latents_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(VinfinityError, match=r"gone\.safetensors: the latents cannot be read"):
        FileLatents(tmp_path / "gone.safetensors").read(range(1))
    save_file({"noise": torch.zeros(1, 4, 2, 3, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(VinfinityError, match="the latents cannot be read"):
        FileLatents(tmp_path / "a.safetensors").read(range(1))


def test_latents_are_read_one_block_at_a_time() -> None:
    source = Watched(torch.randn(1, 4, 10, 2, 2))
    pictures = pictures_of(
        our_vae(tiny_vae()), source, frames=10, size=(16, 16), config=DecodeConfig(frames=3)
    )
    next(pictures)
    # the next block is being decoded by then
    assert source.asked == [range(0, 3), range(3, 6)]
    assert sum(1 for _ in pictures) == 9
    assert source.asked == [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]


def test_blocks_do_not_change_the_pictures(tmp_path: Path) -> None:
    decoder, latents = our_vae(tiny_vae()), torch.randn(1, 4, 7, 3, 5)
    save_file({"latents": latents}, tmp_path / "a.safetensors")
    made = [
        np.stack(list(pictures_of(decoder, source, frames=7, size=(37, 23), config=DecodeConfig(frames=n))))
        for source, n in ((TensorLatents(latents), 1), (FileLatents(tmp_path / "a.safetensors"), 3))
    ]
    assert made[0].shape == (7, 23, 37, 3)
    # batches of another size may round differently
    assert np.abs(made[0].astype(int) - made[1].astype(int)).max() <= 1
    assert (made[0] != made[1]).mean() < 1e-3


def test_one_ahead_gives_all_items_in_order() -> None:
    for count in (0, 1, 2, 5):
        assert list(one_ahead(iter(range(count)))) == list(range(count))


@pytest.mark.parametrize(
    ("settings", "size", "frames"),
    [
        ({}, (80, 128), 8),  # mini
        ({}, (320, 512), 1),  # VideoCrafter2
        ({"tile": 256}, (320, 512), 2),
        ({"tile": 256}, (2160, 3840), 2),  # as many as of smaller frames
        ({}, (2160, 3840), 1),
        ({"frames": 5, "tile": 256}, (2160, 3840), 5),
    ],
    ids=str,
)
def test_block_follows_from_the_size_of_a_frame(
    settings: dict[str, Any], size: tuple[int, int], frames: int
) -> None:
    mini = VAEConfig(block_out_channels=(16, 32, 64, 128), norm_num_groups=8)
    config = mini if size == (80, 128) else VAEConfig()
    assert plan_blocks(DecodeConfig(**settings), config, (size[0] // 8, size[1] // 8)).frames == frames


@pytest.mark.parametrize("tile", [None, 128])
@pytest.mark.parametrize("latent", [(40, 64), (70, 20)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(),
        VAEConfig(block_out_channels=(16, 32, 64, 128), layers_per_block=1, norm_num_groups=8),
        VAEConfig(block_out_channels=(32, 32)),
        TinyConfig(),
    ],
    ids=lambda config: f"{type(config).__name__} {config.downscale} {config.peak_channels}",
)
def test_the_bytes_of_a_block_match_a_trace(
    config: VAEConfig | TinyConfig, latent: tuple[int, int], tile: int | None, record_worst: Note
) -> None:
    with torch.device("meta"):
        decoder = AutoencoderKL(config) if isinstance(config, VAEConfig) else AutoencoderTiny(config)
    blocks = plan_blocks(DecodeConfig(tile=tile), config, latent)
    latents = torch.empty(4, blocks.frames, *latent, device="meta")
    size = (config.downscale * latent[1], config.downscale * latent[0])
    with torch.inference_mode(), LiveBytes() as live:
        decode_block(decoder, latents, size=size, tile=blocks.tile)
    record_worst("bytes of a block, of those traced", blocks.bytes / live.peak)
    assert 0.95 <= blocks.bytes / live.peak <= 1.1


class LargestTensor(Meter):
    """elements: of the largest tensor that an operation returns."""

    elements = 0

    def record(self, function: object, args: object, kwargs: object, out: Any) -> None:
        self.elements = max(self.elements, out.numel() if isinstance(out, torch.Tensor) else 0)


@pytest.mark.parametrize(
    "config",
    [VAEConfig(), VAEConfig(block_out_channels=(32, 32)), TinyConfig()],
    ids=lambda c: str(c.downscale),
)
def test_the_largest_tensor_of_a_decoder_is_known(config: VAEConfig | TinyConfig) -> None:
    with torch.device("meta"):
        decoder = AutoencoderKL(config) if isinstance(config, VAEConfig) else AutoencoderTiny(config)
    with torch.inference_mode(), LargestTensor() as largest:
        decoder.decode(torch.empty(2, 4, 10, 8, device="meta"))
    assert largest.elements == 2 * config.widest_channels * 80 * config.downscale**2


def test_tensors_beyond_31_bits_are_refused_with_a_remedy() -> None:
    latent = (2304 // 8, 4096 // 8)
    with pytest.raises(
        InputError, match=r"decode\.tile: null decodes pieces of 4096x2304 pixels.*decode\.tile=1024"
    ):
        plan_blocks(DecodeConfig(), VAEConfig(), latent)
    with pytest.raises(InputError, match=r"decode\.tile: 8192 decodes pieces of 8192x8192"):
        plan_blocks(DecodeConfig(tile=8192), VAEConfig(), (1100, 1100))
    assert plan_blocks(DecodeConfig(tile=1024), VAEConfig(), latent).frames == 1
    with pytest.raises(
        InputError, match=r"decode\.frames: 60 decodes so many frames at once.*use at most 51"
    ):
        plan_blocks(DecodeConfig(frames=60), VAEConfig(), (40, 64))
    # TAESD's tensors are smaller
    assert plan_blocks(DecodeConfig(), TinyConfig(), latent).frames == 1


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    decoder = our_vae(tiny_vae())
    peaks = []
    for frames in (24, 240):
        save_file({"latents": torch.randn(1, 4, frames, 4, 6)}, tmp_path / "a.safetensors")
        source = FileLatents(tmp_path / "a.safetensors")
        with LiveBytes("cpu") as live:
            assert sum(1 for _ in pictures_of(decoder, source, frames=frames, size=(48, 32))) == frames
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


# ---- tiles ----


def tiled(decoder: FrameDecoder, latents: torch.Tensor, tile: int | None) -> torch.Tensor:
    """Return the pieces of `decode_tiles` put together: every pixel must be there exactly once."""
    height, width = (side * decoder.config.downscale for side in latents.shape[2:])
    whole = torch.full((len(latents), 3, height, width), torch.nan)
    for top, left, piece in decode_tiles(decoder, latents, tile=tile):
        place = whole[:, :, top : top + piece.shape[2], left : left + piece.shape[3]]
        assert place.shape == piece.shape
        assert place.isnan().all()
        place.copy_(piece)
    assert not whole.isnan().any()
    return whole


@pytest.mark.parametrize("size", [(9, 13), (8, 9), (17, 4), (21, 30), (12, 12), (8, 8)], ids=str)
@pytest.mark.parametrize("tile", [4, 8])
def test_tiled_decode_matches_diffusers(tile: int, size: tuple[int, int], record_worst: Note) -> None:
    reference = tiny_vae()
    reference.enable_tiling()
    reference.tile_latent_min_size, reference.tile_sample_min_size = tile, 8 * tile
    latents = torch.randn(2, 4, *size)
    expected = reference.decode(latents / reference.config.scaling_factor).sample
    decoder = our_vae(reference)
    error = (tiled(decoder, latents, tile) - expected).abs().max().item()
    record_worst("tiled decode, largest difference", error)
    assert expected.std() > 0.1
    assert error <= 1e-4
    if max(size) > tile:
        assert relative_error(decoder.decode(latents), expected) > 1e-3  # tiles are seen to work


def test_frames_that_fit_into_a_tile_are_decoded_whole() -> None:
    decoder = our_vae(tiny_vae())
    assert plan_blocks(DecodeConfig(tile=64), decoder.config, (8, 6)).tile is None
    assert plan_blocks(DecodeConfig(tile=64), decoder.config, (8, 9)).tile == 8


def test_memory_of_a_frame_is_bounded_by_the_tile() -> None:
    """A frame with sixteen times the positions adds its picture, the edges of two rows of tiles, and its latents."""
    decoder, peaks = our_vae(tiny_vae()), []
    for side in (16, 64):
        latents = torch.randn(4, 1, side, side)
        with torch.inference_mode(), LiveBytes("cpu") as live:
            decode_block(decoder, latents, size=(8 * side, 8 * side), tile=8)
        peaks.append(live.peak)
    picture, edges = 3 * (512**2 - 128**2), 2 * 4 * 3 * 16 * (11 - 3) * 64
    latent = 2 * 4 * 4 * (64**2 - 16**2)  # and a copy with channels last
    assert peaks[1] - peaks[0] <= picture + edges + latent
    with torch.inference_mode(), LiveBytes("cpu") as live:
        decode_block(decoder, torch.randn(4, 1, 64, 64), size=(512, 512), tile=None)
    assert live.peak > 4 * peaks[1]


# ---- encoding in the background ----


def test_items_are_consumed_in_order_in_one_background_thread() -> None:
    done: list[tuple[int, int]] = []
    consume_in_background(range(50), lambda item: done.append((item, threading.get_ident())), most_pending=3)
    assert [item for item, _ in done] == list(range(50))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})


def test_items_are_produced_while_others_are_consumed() -> None:
    """Each item is produced while the one before is being consumed; one after the other, this would hang."""
    begun, made = threading.Semaphore(0), threading.Semaphore(1)

    def items() -> Iterator[int]:
        for item in range(5):
            if item:
                assert begun.acquire(timeout=10)
            yield item
            made.release()

    def work(item: int) -> None:
        begun.release()
        assert made.acquire(timeout=10)

    consume_in_background(items(), work, most_pending=2)


def test_no_more_items_are_pending_than_allowed() -> None:
    four_made, waiting, done = threading.Event(), [], list[int]()

    def items() -> Iterator[int]:
        for item in range(20):
            waiting.append(item + 1 - len(done))
            if item == 3:
                four_made.set()
            yield item

    def work(item: int) -> None:
        assert four_made.wait(timeout=10)
        if item == 0:
            # in which a fifth could be made
            time.sleep(0.2)
        done.append(item)

    consume_in_background(items(), work, most_pending=3)
    # three are pending, one has been produced
    assert max(waiting) == 4
    assert done == list(range(20))


def test_a_failing_consumer_stops_the_producer() -> None:
    made = []

    def items() -> Iterator[int]:
        for item in range(1000):
            # stands for the time that decoding takes
            time.sleep(0.01)
            made.append(item)
            yield item

    def work(item: int) -> None:
        if item == 2:
            raise OutputError("the disk is full")

    with no_thread_left(), pytest.raises(OutputError, match="the disk is full"):
        consume_in_background(items(), work, most_pending=2000)
    assert len(made) < 1000


@pytest.mark.parametrize("failure", [VinfinityError("no numbers"), KeyboardInterrupt()], ids=repr)
def test_a_failing_producer_drops_pending_items(failure: BaseException) -> None:
    done = []

    def items() -> Iterator[int]:
        yield from range(100)
        raise failure

    def work(item: int) -> None:
        time.sleep(0.05)
        done.append(item)

    with no_thread_left(), pytest.raises(type(failure)):
        consume_in_background(items(), work, most_pending=100)
    assert len(done) < 100


def write(folder: Path, source: LatentSource, *, frames: int, **video: Any) -> Path:
    out = folder / "a.mp4"
    codec = VideoConfig(**video)
    write_video(
        our_vae(tiny_vae()),
        source,
        VideoSpec(frames, latent=(4, 6, 6), size=(48, 48), fps=8, format=choose_format(None, codec)),
        VideoFiles(out, sheet=out.with_suffix(".png") if codec.sheet else None),
        decode=DecodeConfig(),
        ranks=ALONE,
        progress=Progress(enabled=False),
    )
    return out


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Make writing more than `limit` bytes to a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_decoding(tmp_path: Path) -> None:
    source = Watched(torch.randn(1, 4, 400, 6, 6))
    with (
        no_thread_left(),
        pytest.raises(OutputError, match=r"a\.mp4.*: cannot be written \(File too large\)"),
        largest_file(50_000),
    ):
        write(tmp_path, source, frames=400, crf=0, preset="ultrafast")
    assert len(source.asked) < 25  # of 50 blocks
    assert list(tmp_path.iterdir()) == []


def test_nan_latents_stop_the_video_with_their_own_message(tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 40, 6, 6)
    latents[:, :, 20] = torch.nan
    with (
        no_thread_left(),
        pytest.raises(
            VinfinityError, match="decoding: NaN or infinite latents decoded to NaN or infinite frames"
        ),
    ):
        write(tmp_path, TensorLatents(latents), frames=40)
    assert list(tmp_path.iterdir()) == []


def test_the_file_has_the_decoded_frames(tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 30, 6, 6)
    out = write(tmp_path, TensorLatents(latents), frames=30, crf=0, pixel_format="yuv444p")
    pictures = np.stack(
        list(pictures_of(our_vae(tiny_vae()), TensorLatents(latents), frames=30, size=(48, 48)))
    )
    assert np.abs(read_video(out).astype(int) - pictures).max() <= 4


@pytest.mark.slow
def test_ctrl_c_stops_decoding_immediately(model_folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(model_folder), "--prompt", "a red ball", "--frames", "200", "--size", "256x256"]
    options += ["--steps", "1", "--device", "cpu", "--out", str(tmp_path / "a.mp4"), "attention.anchors=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vinfinity", "generate", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "a.run" / "decoded.mp4").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=5)
    assert process.returncode == 75
    assert "stopped" in message.splitlines()[-1]
    assert not (tmp_path / "a.mp4").exists()


# ---- settings ----


@pytest.fixture
def taesd(tmp_path: Path) -> Path:
    fill(TheirTiny()).save_pretrained(tmp_path / "taesd")
    return tmp_path / "taesd"


def test_another_decoder_gives_other_pictures_from_the_same_latents(
    model_folder: Path, taesd: Path, tmp_path: Path
) -> None:
    latents, videos = [], []
    for name, decoder in (("own", None), ("tiny", str(taesd))):
        resolved = configure(
            model_folder,
            "video.crf=0",
            "video.pixel_format=yuv444p",
            decoder=decoder,
            out=str(tmp_path / f"{name}.mp4"),
            save_latents=str(tmp_path / f"{name}.safetensors"),
            device="cpu",
        )
        run(resolved.config)
        latents.append(load_file(tmp_path / f"{name}.safetensors")["latents"])
        videos.append(read_video(tmp_path / f"{name}.mp4"))
    assert torch.equal(*latents)
    expected = fill(TheirTiny()).decode(latents[1][0].transpose(0, 1)).sample
    pixels = (expected * 127.5 + 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(videos[1].astype(int) - pixels).max() <= 4
    assert np.abs(videos[0].astype(int) - videos[1]).mean() > 5
    made_by = [json.loads(read_metadata(tmp_path / f"{name}.mp4")["comment"]) for name in ("own", "tiny")]
    assert made_by[0]["digest"] == made_by[1]["digest"]  # of the latents
    assert made_by[0]["decoder"] != made_by[1]["decoder"]
    assert made_by[1]["config"]["decoder"] == str(taesd)
    assert json.loads((tmp_path / "tiny.run" / "run.json").read_text())["decoder"] == made_by[1]["decoder"]


def test_the_decoder_does_not_change_the_digest_of_the_latents() -> None:
    assert digest(run_config(decoder="a")) == digest(run_config())
    assert digest(run_config(decode=DecodeConfig(tile=64))) == digest(run_config())


def test_a_decoder_that_does_not_fit_is_refused_before_weights_load(
    model_folder: Path, taesd: Path, tmp_path: Path
) -> None:
    def refused(**flags: Any) -> str:
        with pytest.raises(InputError) as raised:
            prepare(configure(model_folder, out=str(tmp_path / "a.mp4"), device="cpu", **flags).config)
        return str(raised.value)

    assert "is not a folder" in refused(decoder=str(tmp_path / "nowhere"))
    assert "is missing" in refused(decoder=str(tmp_path))
    (tmp_path / "wide").mkdir()
    TheirTiny(latent_channels=16).save_pretrained(tmp_path / "wide")
    line = refused(decoder=str(tmp_path / "wide"))
    assert line.startswith(
        f"decoder: {tmp_path / 'wide'} decodes latents of 16 channels and 8 pixels per position"
    )
    assert "but the model's have 4 channels and 8 pixels" in line


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (100, "decode.tile: 100 is not a multiple of 32 pixels; use 96 or 128"),
        (16, "decode.tile: 16 (command line) is not between 32 and 8192"),
    ],
)
def test_a_tile_that_cannot_be_blended_is_refused(
    tile: int, message: str, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as raised:
        prepare(configure(model_folder, f"decode.tile={tile}", out=str(tmp_path / "a.mp4")).config)
    assert str(raised.value).startswith(message)


def test_description_names_the_decoder(model_folder: Path, taesd: Path, tmp_path: Path) -> None:
    given = {"out": str(tmp_path / "a.mp4"), "device": "cpu"}
    assert dict(describe(prepare(configure(model_folder, decoder=str(taesd), **given).config)))[
        "decoder"
    ] == str(taesd)
    assert "decoder" not in dict(describe(prepare(configure(model_folder, **given).config)))
