"""The pretend CUDA devices of the tests find what they claim to find, and nothing in correct code."""

import pickle
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from oracles.pretend.device import PretendCuda, PretendError, PretendTensor
from torch import Tensor

ZERO, ONE = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def cuda() -> Iterator[PretendCuda]:
    with PretendCuda(devices=2) as pretend:
        yield pretend


def values(x: Tensor) -> Tensor:
    assert isinstance(x, PretendTensor)
    return x.values()


def side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream(ZERO)


def test_operations_compute_what_the_cpu_computes(cuda: PretendCuda) -> None:
    x, weight, bias = torch.randn(2, 8, 4, 4), torch.randn(6, 8, 3, 3), torch.randn(6)

    def work(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.silu(F.conv2d(x, weight, bias, padding=1), inplace=True).permute(0, 2, 3, 1)
        y = F.scaled_dot_product_attention(y, y, y, is_causal=True)
        y[:, 1] = 0.5
        y[:, :2] += torch.arange(6, device=y.device)
        halves = torch.cat(y.chunk(2, dim=-1)).view(torch.int32).view(torch.float32)
        return torch.where(halves > 0, halves, torch.full_like(halves, 2.0))

    expected = work(x, weight, bias)
    ours = work(x.to(ZERO), weight.to(ZERO), bias.to(ZERO))
    assert (ours.device, ours.is_cuda, ours.shape) == (ZERO, True, expected.shape)
    torch.testing.assert_close(values(ours), expected)
    with torch.inference_mode():
        torch.testing.assert_close(values(work(x.to(ZERO), weight.to(ZERO), bias.to(ZERO))), expected)


def test_a_module_moves_to_a_device_and_back(cuda: PretendCuda) -> None:
    module, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    expected = module(x).detach()
    module.to(ONE)
    with torch.no_grad():
        assert torch.allclose(module(x.to(ONE)).cpu(), expected)
        assert {parameter.device for parameter in module.parameters()} == {ONE}


@pytest.mark.parametrize("other", [torch.device("cpu"), ONE])
def test_operations_on_different_devices_raise(other: torch.device, cuda: PretendCuda) -> None:
    x, y = torch.ones(3, device=ZERO), torch.ones(3, device=other)
    for mixed in (lambda: x + y, lambda: torch.cat([y, x]), lambda: F.linear(x, y), lambda: y.add_(x)):
        with pytest.raises(PretendError, match="different devices"):
            mixed()
    # torch allows both
    assert (x * torch.tensor(2.0)).device == ZERO
    assert x.to(other).device == other


def test_devices_are_told_apart(cuda: PretendCuda) -> None:
    assert torch.cuda.device_count() == 2
    assert torch.ones(1, device="cuda").device == ZERO
    torch.cuda.set_device(1)
    assert torch.ones(1, device="cuda").device == ONE
    with torch.cuda.stream(side_stream()):
        assert torch.ones(1, device="cuda").device == ZERO
    assert torch.cuda.memory_allocated(ZERO) == torch.cuda.memory_allocated(ONE) == 0
    x = torch.ones(100, device=ONE)
    assert (torch.cuda.memory_allocated(ZERO), torch.cuda.memory_allocated(ONE)) == (0, x.nbytes)
    with pytest.raises(PretendError, match="no device 2"):
        torch.ones(1, device="cuda:2")


def test_reading_back_is_a_wait(cuda: PretendCuda) -> None:
    x = torch.ones(3, device=ZERO)
    for read in (
        lambda: bool(x.isfinite().all()),
        lambda: x[0].item(),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.cpu(),
        lambda: torch.cuda.synchronize(),
        lambda: torch.cuda.current_stream().synchronize(),
    ):
        before = len(cuda.waits)
        read()
        assert len(cuda.waits) == before + 1
    x.add_(1)
    event = torch.cuda.current_stream().record_event()
    assert not event.query()
    x.add_(1)
    assert [event.query(), event.query()] == [False, True]


def test_sync_debug_mode_raises_where_an_operation_waits(cuda: PretendCuda) -> None:
    x, host = torch.ones(3, device=ZERO), torch.ones(3)
    torch.cuda.set_sync_debug_mode("error")
    for wait in (lambda: bool(x.all()), lambda: host.to(ZERO), lambda: x.cpu()):
        with pytest.raises(RuntimeError, match="synchronizing"):
            wait()
    host.pin_memory().to(ZERO, non_blocking=True).add_(x)
    torch.cuda.set_sync_debug_mode("default")
    assert bool(x.all())


def test_copies_are_slow_unless_pinned_and_not_blocking(cuda: PretendCuda) -> None:
    x, pinned = torch.ones(4, 4, device=ZERO), torch.ones(4, 4, pin_memory=True)
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert not torch.ones(1).is_pinned()
    pinned.to(ZERO, non_blocking=True)
    x.copy_(pinned, non_blocking=True)
    pinned.copy_(x, non_blocking=True)
    torch.cuda.synchronize()
    assert cuda.slow_copies == []
    for copy in (
        lambda: pinned.to(ZERO),
        lambda: torch.ones(4, 4).to(ZERO, non_blocking=True),
        # these go through memory that is not pinned
        lambda: pinned.to(ZERO, torch.float16, non_blocking=True),
        lambda: x.copy_(pinned.t(), non_blocking=True),
        lambda: x.cpu(),
        lambda: torch.ones(4, 4).copy_(x, non_blocking=True),
        lambda: x[torch.tensor([0, 1])],
    ):
        before = len(cuda.slow_copies)
        copy()
        assert len(cuda.slow_copies) == before + 1


def test_streams_that_use_the_same_memory_must_be_ordered(cuda: PretendCuda) -> None:
    side, main = side_stream(), torch.cuda.current_stream(ZERO)

    def races() -> int:
        return len(cuda.memory.races)

    x = torch.ones(8, device=ZERO)
    with torch.cuda.stream(side):
        x.sum()
    assert races() == 1, "a read before the write"
    side.wait_stream(main)
    with torch.cuda.stream(side):
        x.sum()
        x[:4].sum()
    assert races() == 1
    x[4:].add_(1)
    assert races() == 2, "a write before the read"
    event = torch.cuda.Event()
    event.record(side)
    main.wait_event(event)
    x.add_(1)
    assert races() == 2
    # halves of a tensor are independent
    side.wait_stream(main)
    with torch.cuda.stream(side):
        x[:4].mul_(2)
    x[4:].mul_(2)
    assert races() == 2


def test_the_host_must_wait_before_it_reads(cuda: PretendCuda) -> None:
    x, host = torch.ones(3, device=ZERO), torch.empty(3, pin_memory=True)
    host.copy_(x, non_blocking=True)
    host.numpy()
    assert len(cuda.memory.races) == 1
    host.copy_(x, non_blocking=True)
    torch.cuda.current_stream().record_event().synchronize()
    assert bool(host.all())
    assert host.numpy().tolist() == [1, 1, 1]
    # nor may it overwrite what is being copied
    x.copy_(host, non_blocking=True)
    host.zero_()
    assert len(cuda.memory.races) == 2


@pytest.mark.parametrize("care", ["none", "wait", "record_stream"])
def test_memory_must_not_be_given_back_before_other_streams_are_done(care: str, cuda: PretendCuda) -> None:
    side, main, x = side_stream(), torch.cuda.current_stream(ZERO), torch.ones(8, device=ZERO)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        y = x.sum()
    if care == "wait":
        main.wait_stream(side)
    if care == "record_stream":
        x.record_stream(side)
    part = x[2:]
    del x
    assert not cuda.memory.early_frees
    del part
    assert bool(cuda.memory.early_frees) == (care == "none")
    # its own stream may do as it likes
    del y
    assert len(cuda.memory.early_frees) == (care == "none")
    assert not cuda.memory.races


def test_new_memory_belongs_to_its_stream(cuda: PretendCuda) -> None:
    """What the stream has queued may still use it."""
    side = side_stream()
    x = torch.empty(8, device=ZERO)
    with torch.cuda.stream(side):
        x.zero_()
    assert len(cuda.memory.races) == 1


def test_threads_must_choose_their_device_before_they_ask_for_events(cuda: PretendCuda) -> None:
    torch.cuda.set_device(1)
    event = torch.cuda.Event()
    event.record()
    event.query()
    assert not cuda.contexts
    for chosen, found in ((None, 1), (1, 1)):

        def ask(chosen: int | None = chosen) -> None:
            if chosen is not None:
                torch.cuda.set_device(chosen)
            event.query()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert len(cuda.contexts) == found


@pytest.mark.parametrize(
    "first_use",
    [
        torch.cuda.init,
        lambda: torch.cuda.set_device(0),
        lambda: torch.cuda.get_device_properties(0),
        lambda: torch.cuda.mem_get_info(0),
        lambda: torch.cuda.Stream(ZERO),
        lambda: torch.cuda.Event(),
        lambda: torch.empty(1, device=ZERO),
    ],
    ids=["init", "set_device", "properties", "mem_get_info", "stream", "event", "allocation"],
)
def test_counts_of_memory_are_reset_only_after_cuda_was_initialised(
    first_use: Callable[[], object], cuda: PretendCuda
) -> None:
    resets = torch.cuda.reset_peak_memory_stats, torch.cuda.reset_accumulated_memory_stats
    assert not torch.cuda.is_initialized()
    assert torch.cuda.device_count() == 2
    for reset in resets:
        with pytest.raises(RuntimeError, match=r"Invalid device argument 0: did you call init\?"):
            reset(ZERO)
    first_use()
    assert torch.cuda.is_initialized()
    for reset in resets:
        reset(ZERO)


def test_a_device_runs_out_of_memory() -> None:
    with PretendCuda(memory=2**20):
        x = torch.empty(600 * 2**10, dtype=torch.uint8, device=ZERO)
        lack = r"Tried to allocate 0\.59 MiB\. GPU 0 has a total capacity of 1\.00 MiB of which 0\.41 MiB is free"
        with pytest.raises(torch.cuda.OutOfMemoryError, match=lack):
            torch.empty_like(x)
        torch.empty(600 * 2**10, dtype=torch.uint8, device=ONE)
        del x
        torch.empty(2**20, dtype=torch.uint8, device=ZERO)


def test_device_tensors_are_neither_pickled_nor_read_by_numpy(cuda: PretendCuda) -> None:
    x = torch.ones(3, device=ONE)
    with pytest.raises(PretendError, match="pickled"):
        pickle.dumps(x)
    with pytest.raises(PretendError, match="numpy"):
        x.numpy()
