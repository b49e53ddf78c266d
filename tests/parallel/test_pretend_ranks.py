"""Several ranks on pretend GPUs, with NCCL's rules: whole runs give one CPU's latents, and nothing else is found."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.fault_work import NCCL_OUT_OF_MEMORY
from oracles.pretend.device import PretendCuda
from oracles.pretend.nccl import PretendNccl
from oracles.pretend.ranks import Outcome, on_pretend_ranks
from oracles.reference import configure, relative_error
from oracles.runs import latents
from oracles.video import read_video
from torch import Tensor

from vinfinity.denoise import execution
from vinfinity.media.blocks import Blocks
from vinfinity.media.decode import decode_frames
from vinfinity.media.latents import TensorLatents
from vinfinity.models import offload
from vinfinity.parallel.connectivity import _FirstExchange, _missing_on_gpu
from vinfinity.parallel.context import plan_halo
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.timeline import one_scene
from vinfinity.planning.fit import decide, find_fit
from vinfinity.run import on_rank, run
from vinfinity.runs.paths import Destination
from vinfinity.system.out_of_memory import GPU_REMEDY
from vinfinity.task import Task
from vinfinity.weights.load import load_decoder

# as for one rank: tests/test_pretend_gpu.py
CLOSE = 1e-5
LOOP = "denoise/loop.py:denoise"
DECODING = "media/decode.py:pictures"
STEPS = 2
# 3, 4 and 5 ranks have unequal shares, with fewer frames than the local scope
SETTINGS: dict[str, Any] = {"frames": 20, "steps": STEPS, "size": "64x48", "guidance": 4.0, "seed": 3}
SETTINGS |= {"dtype": "fp32", "sampler": "sde-dpmsolver++"}
SPLIT = "parallel.split_guidance=true"


@pytest.fixture(scope="module")
def expected(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Return the latents of one rank on the CPU."""
    folder = tmp_path_factory.mktemp("expected")
    run(configure(model_folder, **SETTINGS, device="cpu", out=str(folder / "a.mp4")).config)
    return latents(folder / "a.run")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """See tests/test_pretend_gpu.py."""
    monkeypatch.setattr(execution, "MIB", 2**10)
    monkeypatch.setattr(offload, "BLOCK_BYTES", 2**12)
    monkeypatch.setattr(offload, "PINNED_BYTES", 2**14)


def test_the_host_waits_for_the_messages_of_the_first_exchange() -> None:
    for outcome in on_pretend_ranks(lambda ranks: None, ranks=3):
        assert outcome.error is None, outcome.error
        assert len(outcome.findings.waits_in("parallel/connectivity.py:missing_messages")) == 1


def test_messages_that_did_not_arrive_are_looked_for_behind_the_streams_back() -> None:
    with PretendCuda() as cuda:
        device = torch.device("cuda", 0)
        exchange = _FirstExchange(0, 3)
        # a message consists of its sender's number, counted from 1
        exchange.arriving = {
            peer: torch.full((64,), number, dtype=torch.int64, device=device).view(torch.uint8)
            for peer, number in ((1, 2), (2, 0))
        }
        torch.cuda.synchronize(device)
        assert _missing_on_gpu(exchange) == [2]
        found = cuda.findings()
    assert len(found.waits_in("parallel/connectivity.py:_missing_on_gpu")) == 1
    assert found.races == []
    assert found.early_frees == []
    assert found.slow_copies == []


def run_on(ranks: int, tasks: Sequence[Task]) -> list[Outcome]:
    """Carries out tasks one after the other on pretend ranks, which must find nothing."""

    def work(own: Ranks) -> None:
        for task in tasks:
            on_rank(task, own)

    outcomes = on_pretend_ranks(work, ranks=ranks)
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        found = outcome.findings
        assert found.races == []
        assert found.early_frees == []
        assert found.contexts == []
        assert found.slow_copies_in(LOOP) == []
        assert found.slow_copies_in(DECODING) == []
        assert len(found.waits_in(LOOP)) == STEPS * len(tasks)
    return outcomes


def task_for(model: Path, out: Path, *overrides: str, ranks: int) -> Task:
    with PretendCuda(devices=ranks) as cuda, PretendNccl(cuda):
        flags = {**SETTINGS, "device": "cuda", "gpus": ranks, "out": str(out)}
        config = configure(model, *overrides, **flags).config
        return Task.of(config, Destination.of(config), decode="decode.where=ranks" in overrides)


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
def test_ranks_that_split_guidance_give_one_ranks_latents(
    ranks: int, model_folder: Path, tmp_path: Path, expected: Tensor
) -> None:
    """With two or three ranks, a team of one has no messages before the first vote."""
    task = task_for(model_folder, tmp_path / "a.mp4", SPLIT, ranks=ranks)
    outcomes = run_on(ranks, [task])
    assert relative_error(latents(tmp_path / "a.run"), expected) <= CLOSE
    # each step swaps the branches; a team of several also exchanges frames
    assert all(outcome.batches >= STEPS for outcome in outcomes)


def test_three_ranks_with_skips_on_the_host_give_one_ranks_latents(
    model_folder: Path, tmp_path: Path, expected: Tensor
) -> None:
    """All of them decode, too; and a second run has norms per rank."""
    host = ("compute.skips=host", "compute.chunk=12", "decode.frames=3", "decode.where=ranks")
    tasks = [
        task_for(model_folder, tmp_path / "a.mp4", *host, ranks=3),
        task_for(model_folder, tmp_path / "b.mp4", "attention.norm=rank", "compute.branches=2", ranks=3),
    ]
    outcomes = run_on(3, tasks)
    assert relative_error(latents(tmp_path / "a.run"), expected) <= CLOSE
    # 20 frames are 7 blocks: ranks 0, 1 and 2 decode 3, 2 and 2
    assert [len(outcome.findings.waits_in(DECODING)) for outcome in outcomes] == [3, 2, 2]
    assert len(read_video(tmp_path / "a.mp4")) == 20
    assert latents(tmp_path / "b.run").isfinite().all()


@dataclass(frozen=True)
class LoggedRanks(Ranks):
    """A rank that notes its messages of tensors."""

    log: list[str] = field(default_factory=list)

    def send(self, x: Tensor, to: int, *, label: str) -> None:
        self.log.append("send")
        super().send(x, to, label=label)

    def receive(self, into: Tensor, source: int, *, label: str) -> Tensor:
        self.log.append("receive")
        return super().receive(into, source, label=label)


def test_every_rank_starts_to_decode_its_next_block_before_it_waits_for_one(model_folder: Path) -> None:
    x, size = torch.randn(1, 4, 11, 6, 8), (64, 48)

    def decode(own: Ranks) -> tuple[list[str], list[int]]:
        ranks = LoggedRanks(own.device, own.rank, own.size)
        decoder = load_decoder(model_folder / "vae", device=own.device, dtype=torch.float32)
        source = TensorLatents(x) if own.is_first else None
        blocks = Blocks(frames=2, tile=None, bytes=0)
        pictures = decode_frames(
            decoder, source, frames=range(11), latent=(4, 6, 8), size=size, blocks=blocks, ranks=ranks
        )
        return ranks.log, [int(picture.sum()) for picture in pictures]

    # 6 blocks
    outcomes = on_pretend_ranks(decode, ranks=2)
    log, pictures = outcomes[0].result
    assert log == ["send", "send", "receive", "send", "receive", "receive"]
    assert outcomes[1].result[0] == ["receive", "receive", "send", "receive", "send", "send"]
    (alone,) = on_pretend_ranks(decode, ranks=1)
    assert alone.result == ([], pictures)


def fetch_neighbours(ranks: Ranks) -> list[float]:
    """Return the first frames of a rank's neighbours, which all hold their rank's number."""
    shards = FrameShards(2 * ranks.size, ranks.size)
    exchange = ranks.team(shards.frames, split=False).exchange()
    x = torch.full((1, 2, 3), float(ranks.rank), device=ranks.device)
    fetched = exchange.fetch(
        x, plan_halo(shards, ranks.rank, one_scene(shards.frames)).route, label="test"
    ).wait()
    return [float(value) for value in fetched.frames[0, :, 0]]


def test_the_pretend_nccl_delivers_messages() -> None:
    outcomes = on_pretend_ranks(fetch_neighbours, ranks=3)
    assert [outcome.result for outcome in outcomes] == [[1.0], [0.0, 2.0], [1.0]]
    assert [outcome.findings.races for outcome in outcomes] == [[], [], []]


def test_a_rank_on_which_nccl_fails_ends_those_that_wait_for_it_to_connect() -> None:
    """They are inside NCCL, so their thread ends them."""
    started = time.monotonic()
    outcomes = on_pretend_ranks(lambda ranks: None, ranks=3, timeout=60.0, broken=1)
    assert time.monotonic() - started < 30
    assert (
        "RankError: NCCL could not connect the 3 ranks: NCCL error: unhandled system error; try NCCL_P2P"
        in str(outcomes[1].error)
    )
    assert [outcomes[rank].error for rank in (0, 2)] == ["the process ended"] * 2


@pytest.mark.parametrize("where", ["init", "batch"])
def test_a_gpu_without_room_for_nccl_is_no_lost_rank(where: str) -> None:
    outcomes = on_pretend_ranks(
        lambda ranks: None, ranks=2, timeout=60.0, broken=1, fault=(where, NCCL_OUT_OF_MEMORY)
    )
    assert f"OutOfMemoryError: rank 1 on cuda:1: out of memory; {GPU_REMEDY}" in str(outcomes[1].error)


def test_ranks_wait_for_those_that_load_for_long(model_folder: Path, tmp_path: Path) -> None:
    """Later messages wait no longer than `parallel.timeout`."""
    task = task_for(model_folder, tmp_path / "a.mp4", "steps=1", ranks=2)

    @dataclass(frozen=True)
    class SlowRanks(Ranks):
        def barrier(self) -> None:
            order.append("barrier")
            super().barrier()

        def check_shutdown(self) -> None:
            order.append("check")
            super().check_shutdown()

    order: list[str] = []

    def work(own: Ranks) -> list[str]:
        fields = {one.name: getattr(own, one.name) for one in dataclasses.fields(own)}
        on_rank(task, SlowRanks(**fields))
        return order

    for outcome in on_pretend_ranks(work, ranks=2):
        assert outcome.error is None, outcome.error
        assert "barrier, check" in ", ".join(outcome.result)


def test_ranks_wait_for_the_plan_longer_than_for_a_message(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = task_for(model_folder, tmp_path / "a.mp4", ranks=2).job

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(8.0)
        return decide(*arguments, **options)

    monkeypatch.setattr("vinfinity.planning.fit.decide", slow)
    outcomes = on_pretend_ranks(lambda ranks: find_fit(job, ranks).executions, ranks=2, timeout=5.0)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert outcomes[0].result == outcomes[1].result


def test_the_pretend_nccl_makes_a_communicator_only_of_all_ranks() -> None:
    """Without all of them, NCCL would wait for ever."""

    def first_two_only(ranks: Ranks) -> None:
        if ranks.rank < 2:
            PretendNccl.active().make_communicator("another")

    outcomes = on_pretend_ranks(first_two_only, ranks=3, timeout=1.0)
    assert ["2 of 3 ranks came" in (outcome.error or "") for outcome in outcomes] == [True, True, False]
