"""Decoding with a causal decoder: in order on one rank, in turns on several."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.pretend.ranks import on_pretend_ranks
from oracles.video import read_video
from oracles.wan_autoencoder import our_wan_vae, tiny_wan_vae

from vinfinity.config import DecodeConfig, InputConfig, VideoConfig, choose_format
from vinfinity.errors import InputError, NotFiniteError, Stopped
from vinfinity.job import check_images
from vinfinity.media import turns
from vinfinity.media.blocks import check_tile, plan_blocks
from vinfinity.media.decode import decode_block, decode_frames, decode_single
from vinfinity.media.latents import TensorLatents
from vinfinity.media.turns import plan_turns, shared_time
from vinfinity.media.video import VideoFiles, VideoSpec, write_video
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d.configs import VAEConfig
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.models.wan.vae import AutoencoderKLWan
from vinfinity.models.wan.vae_config import WanVAEConfig
from vinfinity.parallel.ranks import Ranks
from vinfinity.planning.meter import LiveBytes
from vinfinity.planning.trace import trace_decode
from vinfinity.system.progress import Progress
from vinfinity.system.signals import Shutdown

ALONE = Ranks(device=torch.device("cpu"))
LATENT, SIZE = (4, 2, 1), (7, 14)


@pytest.fixture(scope="module")
def decoder() -> AutoencoderKLWan:
    torch.manual_seed(1)
    return our_wan_vae(tiny_wan_vae(base_dim=4))


@pytest.fixture(scope="module")
def published() -> AutoencoderKLWan:
    with torch.device("meta"):
        return AutoencoderKLWan(WanVAEConfig())


def pictures_of(
    decoder: AutoencoderKLWan, latents: torch.Tensor, frames: range, ranks: Ranks = ALONE, bits: int = 8
) -> np.ndarray:
    blocks = plan_blocks(DecodeConfig(), decoder.config, LATENT[1:])
    source = TensorLatents(latents) if ranks.is_first else None
    pictures = decode_frames(
        decoder, source, frames=frames, latent=LATENT, size=SIZE, blocks=blocks, ranks=ranks, bits=bits
    )
    return np.stack([np.zeros((0,))] if (made := list(pictures)) == [] else made)


def expected(decoder: AutoencoderKLWan, latents: torch.Tensor, white: int = 255) -> np.ndarray:
    frames = torch.stack(list(decoder.decode_frames(latents[0].unbind(1))))
    pixels = (frames * (white / 2) + white / 2).round().clamp(0, white).permute(0, 2, 3, 1)
    return pixels[:, 1:15, 0:7].numpy()


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9, 27], ids=str)
def test_frames_are_those_of_the_stream_and_surplus_ones_are_dropped(
    decoder: AutoencoderKLWan, frames: int
) -> None:
    latents = torch.randn(1, 4, 1 + -(-(frames - 1) // 4), *LATENT[1:])
    made = pictures_of(decoder, latents, range(frames))
    assert made.shape == (frames, 14, 7, 3)
    assert np.array_equal(made, expected(decoder, latents)[:frames])


def test_samples_of_16_bits_are_exact(decoder: AutoencoderKLWan) -> None:
    latents = torch.randn(1, 4, 3, *LATENT[1:])
    made = pictures_of(decoder, latents, range(9), bits=16)
    assert made.dtype == np.uint16
    assert np.array_equal(made, expected(decoder, latents, white=65535))


@pytest.mark.parametrize("first", [0, 1, 2, 5, 8, 170, 177])
def test_decoding_continues_at_any_frame(decoder: AutoencoderKLWan, first: int) -> None:
    latents = torch.randn(1, 4, 46, *LATENT[1:])
    made = pictures_of(decoder, latents, range(first, 180))
    assert np.array_equal(made, expected(decoder, latents)[first:180])


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 179])
def test_a_single_frame_is_that_of_the_whole_video(decoder: AutoencoderKLWan, frame: int) -> None:
    latents = torch.randn(1, 4, 46, *LATENT[1:])
    made = decode_single(decoder, TensorLatents(latents), frame, size=SIZE, tile=None)
    assert np.array_equal(made, expected(decoder, latents)[frame])


@pytest.mark.parametrize(
    ("ranks", "rounds", "first"), [(2, 1, 0), (3, 1, 53), (5, 1, 0), (2, 2, 53), (3, 2, 0)], ids=str
)
def test_several_ranks_decode_what_one_does(
    decoder: AutoencoderKLWan, ranks: int, rounds: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(1, 4, 50, *LATENT[1:])
    frames = range(first, 195)
    needed = 50 - -(-first // 4)
    length = -(-needed // (ranks * rounds))
    monkeypatch.setattr(turns, "TURN_BYTES", length * 4 * 3 * SIZE[0] * SIZE[1])
    blocks = plan_blocks(DecodeConfig(), decoder.config, LATENT[1:])
    plan = plan_turns(decoder, needed, blocks, ranks=ranks, picture_bytes=3 * SIZE[0] * SIZE[1])
    assert (plan.ranks, plan.length) == (ranks, length)
    outcomes = on_pretend_ranks(lambda own: pictures_of(decoder, latents, frames, own), ranks=ranks)
    assert [outcome.error for outcome in outcomes] == [None] * ranks
    assert np.array_equal(outcomes[0].result, expected(decoder, latents)[first:195])


def test_a_short_video_is_decoded_by_rank_0_alone(decoder: AutoencoderKLWan) -> None:
    latents = torch.randn(1, 4, 6, *LATENT[1:])
    outcomes = on_pretend_ranks(lambda own: pictures_of(decoder, latents, range(21), own), ranks=2)
    assert np.array_equal(outcomes[0].result, expected(decoder, latents)[:21])
    assert outcomes[1].result.size == 0


def test_a_video_is_decoded_in_flat_memory(decoder: AutoencoderKLWan) -> None:
    peaks = []
    for latents in (20, 300):
        source = TensorLatents(torch.randn(1, 4, 1, *LATENT[1:]).expand(-1, -1, latents, -1, -1))
        blocks = plan_blocks(DecodeConfig(), decoder.config, LATENT[1:])
        with LiveBytes("cpu") as live:
            pictures = decode_frames(
                decoder,
                source,
                frames=range(4 * latents - 3),
                latent=LATENT,
                size=SIZE,
                blocks=blocks,
                ranks=ALONE,
            )
            assert sum(1 for _ in pictures) == 4 * latents - 3
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


def test_values_that_are_not_finite_are_refused(decoder: AutoencoderKLWan) -> None:
    latents = torch.randn(1, 4, 3, *LATENT[1:])
    latents[0, 0, 1, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="NaN or infinite latents decoded"):
        pictures_of(decoder, latents, range(9))


def test_a_request_to_end_is_met_between_two_pictures_of_a_block(decoder: AutoencoderKLWan) -> None:
    seen: list[int] = []

    def check() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        decode_block(decoder, torch.randn(4, 5, 2, 1), size=SIZE, tile=None, check=check)
    assert len(seen) == 3


def test_a_video_continues_where_it_was_interrupted(decoder: AutoencoderKLWan, tmp_path: Path) -> None:
    """With its contact sheet, whose first pictures were decoded before."""
    latents, frames = torch.randn(1, 4, 12, *LATENT[1:]), 45
    video_format = choose_format(None, VideoConfig())
    spec = VideoSpec(frames, latent=LATENT, size=SIZE, fps=4, format=video_format)
    files = {}
    for name, stop_at in (("whole", None), ("continued", 30)):
        shutdown = Shutdown()

        class Interrupted(TensorLatents):
            def read(
                self, wanted: range, stop_at: int | None = stop_at, own: Shutdown = shutdown
            ) -> torch.Tensor:
                if stop_at is not None and wanted.stop > stop_at // 4:
                    raise Stopped("enough")
                return super().read(wanted)

        for source in (Interrupted(latents), TensorLatents(latents)):
            try:
                write_video(
                    decoder,
                    source,
                    spec,
                    VideoFiles(
                        tmp_path / f"{name}.mp4",
                        sheet=tmp_path / f"{name}.png",
                        unfinished=tmp_path / f"{name}.unfinished",
                        identity="x",
                    ),
                    decode=DecodeConfig(),
                    ranks=ALONE,
                    progress=Progress(enabled=False),
                )
                break
            except Stopped:
                assert (tmp_path / f"{name}.unfinished").exists()
        files[name] = read_video(tmp_path / f"{name}.mp4"), (tmp_path / f"{name}.png").read_bytes()
    assert len(files["whole"][0]) == frames
    assert np.array_equal(files["whole"][0], files["continued"][0])
    assert files["whole"][1] == files["continued"][1]


# ---- arithmetic ----


def test_ranks_share_where_that_is_faster(published: AutoencoderKLWan) -> None:
    """832x480: 53 latent frames a turn, to begin in the middle of the video costs 6.8 of them."""
    blocks = plan_blocks(DecodeConfig(), published.config, (60, 104))
    picture = 3 * 832 * 480

    def plan(latents: int, ranks: int) -> turns.Turns:
        return plan_turns(published, latents, blocks, ranks=ranks, picture_bytes=picture)

    assert plan(21, 1).ranks == plan(1, 8).ranks == plan(7, 8).ranks == 1
    # 5 s, 20 s, 64 s, 144 s at 16 fps
    speedups = {latents: latents / plan(latents, 8).time for latents in (21, 81, 257, 577)}
    assert {latents: round(times, 1) for latents, times in speedups.items()} == {
        21: 2.1,
        81: 4.6,
        257: 6.5,
        577: 6.6,
    }
    assert plan(257, 8).length == 33
    assert plan(577, 8).length == 37
    assert plan(577, 8).held * plan(577, 8).length * 4 * picture <= 3 * turns.TURN_BYTES


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("latents", [1, 5, 12, 40])
def test_the_time_of_turns_is_that_of_a_schedule(latents: int, ranks: int) -> None:
    for length in (1, 3, 7, 40):
        spans = [min(length, latents - start) for start in range(0, latents, length)]
        rounds = [spans[first : first + ranks] for first in range(0, len(spans), ranks)]
        expected = sum(max(spans) + 6.5 for spans in rounds)
        assert shared_time(latents, ranks, length, restart_cost=6.5) == pytest.approx(expected)


def test_independent_frames_are_shared_a_block_a_turn() -> None:
    with torch.device("meta"):
        decoder = AutoencoderKL(VAEConfig())
    blocks = plan_blocks(DecodeConfig(frames=3), decoder.config, (40, 64))
    plan = plan_turns(decoder, 60, blocks, ranks=4, picture_bytes=1)
    assert (plan.ranks, plan.length, plan.time) == (4, 3, 15.0)


@pytest.mark.parametrize("latent", [(60, 104), (13, 20)], ids=str)
def test_the_bytes_of_a_block_match_a_trace(
    latent: tuple[int, int], published: AutoencoderKLWan, record_worst: Callable[[str, float], None]
) -> None:
    blocks = plan_blocks(DecodeConfig(), published.config, latent)
    size, stream = (8 * latent[1], 8 * latent[0]), published.stream()
    with torch.inference_mode(), LiveBytes() as live:
        for _ in range(3):
            decode_block(
                published, torch.empty(16, 1, *latent, device="meta"), size=size, tile=None, stream=stream
            )
    record_worst("bytes of a causal block, of those traced", blocks.bytes / live.peak)
    assert 0.95 <= blocks.bytes / live.peak <= 1.1
    traced = trace_decode(published, blocks, latent)
    assert traced.working == pytest.approx(live.peak, rel=0.05)
    # multiplications and additions of one latent frame
    assert traced.work.flops / (latent[0] * latent[1]) == pytest.approx(13.55e12 / (60 * 104), rel=0.01)


# ---- settings ----


def test_tiles_are_refused_for_causal_decoders() -> None:
    config = DecodeConfig(tile=256)
    check_tile(config, LatentGeometry(4, 8))
    check_tile(DecodeConfig(), LatentGeometry(16, 8, time_downscale=4))
    line = "decode.tile: 256 does not help: the model's decoder keeps frames for every tile, more than for whole frames"
    with pytest.raises(InputError, match=f"^{re.escape(line)}; remove it"):
        check_tile(config, LatentGeometry(16, 8, time_downscale=4))


def test_frames_beyond_31_bits_are_refused() -> None:
    assert plan_blocks(DecodeConfig(), WanVAEConfig(), (180, 320)).frames == 1
    with pytest.raises(
        InputError, match=r"^size: 3840x2160 decodes pieces of 3840x2160 pixels.*use a smaller size"
    ):
        plan_blocks(DecodeConfig(), WanVAEConfig(), (270, 480))


def test_frames_are_not_held_to_pictures_with_latents_of_several_frames() -> None:
    check_images(InputConfig(first_frame="a.png"), LatentGeometry(4, 8))
    check_images(InputConfig(video="a.mp4"), LatentGeometry(16, 8, time_downscale=4))
    for field in ("first_frame", "last_frame"):
        given: dict[str, Any] = {field: "a.png"}
        with pytest.raises(
            InputError, match=rf"^input\.{field}: a\.png needs a model with latents for each frame"
        ):
            check_images(InputConfig(**given), LatentGeometry(16, 8, time_downscale=4))
