"""Plans of runs that start from a video: the memory of encoding it, and its time."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.films import frames_of, write_film
from oracles.reference import configure

from vinfinity.config import load
from vinfinity.media.encode import block_frames, encode_block, frame_bytes
from vinfinity.planning.machines import GPUS
from vinfinity.planning.memory import memory_bound, trace_memory
from vinfinity.planning.meter import LiveBytes
from vinfinity.planning.outline import Outline, outline
from vinfinity.planning.plan import make_plan
from vinfinity.weights.card import model_defaults, planned_card, read_card
from vinfinity.weights.load import load_encoder


def outline_of(model: Path | str, *overrides: str, **flags: object) -> Outline:
    given = {"model": str(model), "steps": 6, **flags}
    card = functools.partial(model_defaults, planned=True)
    config = load(None, overrides=overrides, flags=given, card=card).config
    return outline(config, planned_card(str(model)), device="cpu", ranks=1)


@pytest.mark.parametrize("size", ["128x80", "100x60"])
def test_traced_encoding_needs_the_memory_of_real_encoding(size: str, tmp_path: Path) -> None:
    run = outline_of("mini", "first_pass.size=64x48", frames=20, size=size)
    memory = trace_memory(run, run.executions[-1])
    assert memory.encoding is not None
    encoder = load_encoder(read_card("mini").folder / "vae", device="cpu", dtype=torch.float32)
    assert memory.encoding.weights == sum(parameter.nbytes for parameter in encoder.parameters())
    width, height = run.size
    pictures = torch.from_numpy(np.zeros((run.encoded_at_once, height, width, 3), dtype=np.uint8))
    encode_block(encoder, pictures, latent=run.latent_shape)
    with torch.no_grad(), LiveBytes("cpu") as live:
        encode_block(encoder, pictures, latent=run.latent_shape)
    # a trace holds the pictures as they were read, too, and in one more memory layout
    area = run.encoded_at_once * width * height
    assert live.peak <= memory.encoding.working <= live.peak + area * 3 * (1 + 2 * 4)


@pytest.mark.parametrize("model", ["mini", "zeroscope-xl"])
def test_an_encoding_block_takes_no_more_than_its_bound(model: str) -> None:
    run = outline_of(model, "first_pass.size=64x48", frames=20, size="512x320")
    memory, encoder = trace_memory(run, run.executions[-1]), run.encoder
    assert memory.encoding is not None
    assert encoder is not None
    at_once = block_frames(encoder.config, run.latent_shape[1:])
    assert memory.encoding.working <= 1.05 * at_once * frame_bytes(encoder.config, run.latent_shape[1:])


def test_only_runs_that_start_from_pictures_encode(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", frames_of(20))
    plain = outline_of("mini", frames=20, size="32x24")
    starting = outline_of("mini", frames=20, size="32x24", **{"input.video": str(film)})
    held = outline_of("mini", frames=20, size="32x24", **{"input.first_frame": "first.png"})
    assert [run.encoded_at_once for run in (plain, starting, held)] == [0, 8, 1]
    without, with_film, with_picture = (
        trace_memory(run, run.executions[-1]) for run in (plain, starting, held)
    )
    assert (without.encoding, without.reading) == (None, 0)
    for memory in (with_film, with_picture):
        assert memory.encoding is not None
        assert memory.reading > 0
        assert memory.device >= memory.encoding.device
    assert with_film.reading > with_picture.reading
    assert memory_bound(starting, starting.executions[0]) > memory_bound(plain, plain.executions[0])


def test_a_large_video_may_need_more_memory_to_encode_than_for_anything_else() -> None:
    run = outline_of("mini", "first_pass.size=64x48", "decode.tile=256", frames=1, size="2048x1280")
    memory = trace_memory(run, run.executions[-1])
    assert memory.encoding is not None
    assert memory.device == memory.encoding.device


def test_the_time_of_encoding_is_part_of_the_estimate() -> None:
    given = {"frames": 96, "gpus": 2}
    plain, starting = (
        make_plan(configure("mini", *more, **given).config, gpu="RTX 4090")
        for more in ((), ("first_pass.size=64x48",))
    )
    seconds = starting.seconds(GPUS["RTX 4090"])
    assert plain.seconds(GPUS["RTX 4090"]).encoding == 0
    assert 0 < seconds.encoding < seconds.total
    assert starting.first_pass is not None
    assert starting.first_pass.seconds(GPUS["RTX 4090"]).encoding == 0
