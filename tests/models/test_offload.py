"""Hidden states in host memory, on a pretend GPU: order of copies, memory on both sides, and what plans say of it."""

from collections.abc import Iterator

import pytest
import torch
from oracles.networks import levels, our_unet
from oracles.pretend.device import PretendCuda, PretendTensor
from oracles.reference import tiny_unet
from torch import Tensor

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.samplers import DDIM
from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.models import offload
from vinfinity.models.families import FAMILIES
from vinfinity.models.offload import Frames, HostStore
from vinfinity.parallel.exchange import LocalExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards
from vinfinity.planning.trace import CallShape, network_call, trace_step

GPU = torch.device("cuda", 0)
# b, f, h, w, c
SHAPE = (2, 11, 3, 5, 8)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of less than a frame, so that chunks begin and end anywhere in them."""
    monkeypatch.setattr(offload, "BLOCK_BYTES", 2**8)
    monkeypatch.setattr(offload, "PINNED_BYTES", 2**10)


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    """Yield a pretend GPU on which nothing may be found when the test is over."""
    with PretendCuda() as pretend:
        yield pretend
        found = pretend.findings()
    assert (found.races, found.early_frees, found.slow_copies, found.waits) == ([], [], [], [])


def on_gpu(x: Tensor) -> Tensor:
    """Return a copy on the GPU for which the host does not wait."""
    return x.pin_memory().to(GPU, non_blocking=True)


def values(x: Tensor) -> Tensor:
    """Return the values of a tensor on the pretend GPU."""
    assert isinstance(x, PretendTensor)
    return x.values()


def chunks_of(frames: int, size: int) -> list[tuple[slice, slice | None]]:
    """Chunks of some frames, each with the next one."""
    chunks = [slice(start, min(start + size, frames)) for start in range(0, frames, size)]
    return list(zip(chunks, [*chunks[1:], None], strict=True))


def read_in_chunks(states: Frames, size: int) -> Iterator[Tensor]:
    for chunk, following in chunks_of(states.shape[1], size):
        yield states.read(chunk, then=following)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("size", [1, 3, 4, 11])
def test_states_come_back_as_they_were(size: int, dtype: torch.dtype, cuda: PretendCuda) -> None:
    x = torch.randn(SHAPE).to(dtype)
    states = HostStore(GPU).keep(on_gpu(x))
    assert (states.shape, states.dtype) == (x.shape, dtype)
    for _ in range(2):
        assert torch.equal(torch.cat([values(part) for part in read_in_chunks(states, size)], dim=1), x)


def test_memory_of_states_may_be_overwritten_as_soon_as_they_are_dropped(cuda: PretendCuda) -> None:
    """The copy to the host may still run then: what the GPU computes next must wait for it."""
    store = HostStore(GPU)
    expected = [torch.randn(SHAPE) for _ in range(3)]
    kept = []
    for x in expected:
        current = on_gpu(x)
        kept.append(store.keep(current))
        del current
        on_gpu(torch.zeros(SHAPE)).add_(1)
    for states, x in zip(kept, expected, strict=True):
        assert torch.equal(values(states.read(slice(0, 11))), x)


def test_chunks_may_be_read_in_any_order_and_left_unread(cuda: PretendCuda) -> None:
    x, store = torch.randn(SHAPE), HostStore(GPU)
    states = store.keep(on_gpu(x))
    for frames, expected in (
        (slice(0, 2), slice(2, 4)),
        (slice(4, 9), slice(9, 11)),
        (slice(9, 11), None),
        (slice(3, 4), slice(4, 10)),
    ):
        assert torch.equal(values(states.read(frames, then=expected)), x[:, frames])
    # the last of these chunks is on its way
    del states
    other = store.keep(on_gpu(x.flip(1)))
    assert torch.equal(values(other.read(slice(0, 11))), x.flip(1))


def test_host_memory_of_dropped_states_is_used_again(cuda: PretendCuda) -> None:
    store = HostStore(GPU)
    taken = set()
    for _ in range(4):
        states = store.keep(on_gpu(torch.randn(SHAPE)))
        assert len(list(read_in_chunks(states, 4))) == 3
        del states
        taken.add(cuda.memory.pinned)
    assert len(taken) == 1


@pytest.mark.parametrize("readers", [1, 2])
def test_at_most_two_chunks_of_each_states_are_on_the_device(readers: int, cuda: PretendCuda) -> None:
    """One that is used, and one that arrives meanwhile. Two states are read in turn where deep features are reused."""
    store = HostStore(GPU)
    kept = [store.keep(on_gpu(torch.randn(SHAPE))) for _ in range(readers)]
    chunk = 4 * SHAPE[0] * 3 * 5 * 8 * 4
    torch.cuda.reset_peak_memory_stats(GPU)
    assert torch.cuda.memory_allocated(GPU) == 0
    for current, following in chunks_of(SHAPE[1], 4):
        parts = [states.read(current, then=following) for states in kept]
        del parts
    assert torch.cuda.max_memory_allocated(GPU) == 2 * readers * chunk
    kept.clear()
    store.keep(on_gpu(torch.randn(SHAPE)))
    assert torch.cuda.memory_allocated(GPU) == 0


@pytest.mark.parametrize("reuse_depth", [None, 1])
def test_a_plan_counts_what_a_call_takes(reuse_depth: int | None, cuda: PretendCuda) -> None:
    """Pinned memory to the byte, with what its allocator adds; on the device, a fifth more at most."""
    network = our_unet(tiny_unet(**levels("AA")))
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(on_gpu(parameter), requires_grad=False))
    shape = CallShape(
        family=FAMILIES[0],
        config=network.config,
        shards=FrameShards(19),
        rank=0,
        latent_size=(6, 8),
        scopes=Scopes(local=3, anchors=4, anchor_bias=2.0),
        dtype=torch.float32,
        text_tokens=5,
        reuse_depth=reuse_depth,
    )
    execution = Execution(branches=2, skips="host", chunk_bytes=2**15)
    planned = trace_step(shape, execution, DDIM(SchedulerConfig(), steps=4), branches=2)
    text, x = on_gpu(torch.randn(2, 5, 16)), on_gpu(torch.randn(shape.latents))
    call = network_call(shape, execution, LocalExchange(), network=network, text=text)
    before = torch.cuda.memory_allocated(GPU) - x.nbytes
    torch.cuda.reset_peak_memory_stats(GPU)
    assert cuda.memory.pinned == 0
    with torch.no_grad():
        for t in (500.0, 400.0):
            call(x, t)
    assert cuda.memory.pinned == planned.host > 0
    taken = torch.cuda.max_memory_allocated(GPU) - before
    # a trace counts views of weights as well, which are much of a tiny network's memory
    assert taken <= planned.working <= 1.2 * taken
