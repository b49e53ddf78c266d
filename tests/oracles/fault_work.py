"""Faults of GPUs and of what connects them, as workers of ranks on the CPU. Each rank is a process."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from oracles.reference import configure
from torch import Tensor

from vinfinity.config import CheckpointConfig
from vinfinity.denoise.execution import Execution
from vinfinity.denoise.selection import select_all
from vinfinity.denoise.state import State
from vinfinity.denoiser import fitting_denoiser
from vinfinity.inputs import initial_state, shared_text
from vinfinity.job import prepare
from vinfinity.networks import Networks, load_denoiser
from vinfinity.parallel.connectivity import check_connections
from vinfinity.parallel.context import plan_halo
from vinfinity.parallel.exchange import RankExchange, Work
from vinfinity.parallel.join import ERROR_HANDLING
from vinfinity.parallel.ranks import Ranks
from vinfinity.parallel.shards import FrameShards
from vinfinity.parallel.timeline import one_scene
from vinfinity.parallel.votes import Votes
from vinfinity.parallel.waits import DeviceWait
from vinfinity.planning.fit import Fit
from vinfinity.runs.checkpoints import CheckpointPlan, Checkpoints
from vinfinity.runs.folder import RunFolder
from vinfinity.runs.parts import write_part
from vinfinity.system.progress import Progress

# far longer than any limit of a test
FOREVER = 600.0
CUDA_OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 944.00 MiB. GPU 1 has a total capacity of 23.65 GiB of which 61.00 MiB is"
    " free. Including non-PyTorch memory, this process has 23.58 GiB memory in use."
)
NCCL_OUT_OF_MEMORY = (
    "NCCL error in: NCCLUtils.cpp:90, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)
CUBLAS_OUT_OF_MEMORY = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
# of torch's allocator, where NVML does not tell who has the memory
MIG_OUT_OF_MEMORY = (
    'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":1165, please report a bug'
    " to PyTorch. "
)


class Point:
    """A point in the work of a pretended GPU. As in CUDA, one that nobody records has always passed."""

    def __init__(self, *, passed: bool) -> None:
        self.passed, self._recorded = passed, False

    def record(self) -> None:
        self._recorded = True

    def query(self) -> bool:
        return self.passed or not self._recorded


def wait_on_gpu(ranks: Ranks, label: str) -> None:
    """Have the GPU wait for messages, as NCCL does: nothing raises on the host."""
    wait = DeviceWait(label, Point(passed=True), Point(passed=False))
    wait.reached.record()
    wait.answered.record()
    ranks.waits._device.append(wait)


def hurry(ranks: Ranks) -> None:
    """From here on, ranks need not load anything, and can be missed sooner."""
    assert ranks.liveness is not None
    ranks.all_gather(1)
    ranks.liveness.monitor.timeout = 4.0


def suspend(_: None, ranks: Ranks) -> None:
    """Rank 1 is suspended while the others wait for it on their GPUs, and their hosts are inside a library."""
    hurry(ranks)
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_on_gpu(ranks, "temporal attention 1")
    time.sleep(FOREVER)


def hang(_: None, ranks: Ranks) -> None:
    """Rank 1 hangs, though its threads live; the GPUs of the others wait for it."""
    hurry(ranks)
    if ranks.rank != 1:
        wait_on_gpu(ranks, "temporal attention 1")
    time.sleep(FOREVER)


def hang_in_transport(_: None, ranks: Ranks) -> None:
    """Return the GPUs of all ranks wait for each other; the hosts look at them."""
    hurry(ranks)
    wait_on_gpu(ranks, "temporal convolution")
    while True:
        time.sleep(0.01)
        assert ranks.liveness is not None
        ranks.liveness.check()


def hang_until_aborted(_: None, ranks: Ranks) -> None:
    """Rank 1 hangs, and NCCL's watchdog aborts the ranks that wait for it."""
    ranks.all_gather(1)
    if ranks.rank == 1:
        time.sleep(FOREVER)
    with ranks.waits.on_host("temporal attention 1"):
        # until the heartbeats say so
        time.sleep(1.5)
        os.abort()


def abort(_: None, ranks: Ranks) -> None:
    """Rank 1 aborts, for a reason of its own."""
    ranks.all_gather(1)
    if ranks.rank == 1:
        os.abort()
    time.sleep(FOREVER)


def raise_while_others_wait(_: None, ranks: Ranks) -> None:
    """Rank 1 fails while the GPUs of the others wait for it; the cleanup of NCCL would block for a minute."""
    dist.destroy_process_group = lambda *_: time.sleep(60)
    ranks.all_gather(1)
    if ranks.rank == 1:
        raise KeyError("missing")
    wait_on_gpu(ranks, "temporal attention 1")
    time.sleep(FOREVER)


def finish_with_a_slow_cleanup(_: None, ranks: Ranks) -> int:
    """All is well, but the cleanup of NCCL would block for a minute."""
    dist.destroy_process_group = lambda *_: time.sleep(60)
    return sum(ranks.all_gather(ranks.rank))


def run_out_of_memory(_: None, ranks: Ranks) -> None:
    """Rank 1 runs out of memory in its network, while the GPUs of the others wait for it."""
    ranks.all_gather(1)
    if ranks.rank == 1:
        raise torch.cuda.OutOfMemoryError(CUDA_OUT_OF_MEMORY)
    wait_on_gpu(ranks, "temporal attention 1")
    time.sleep(FOREVER)


def run_out_of_memory_in_an_exchange(where: str, ranks: Ranks) -> None:
    """Rank 1 runs out of memory when messages start, or when they are waited for."""
    shards = FrameShards(2 * ranks.size, ranks.size)
    x, route = torch.zeros(1, 2, 2, 2, 4), plan_halo(shards, ranks.rank, one_scene(shards.frames)).route
    if ranks.rank == 1:
        original = dist.batch_isend_irecv

        class Failing:
            def wait(self) -> None:
                raise torch.cuda.OutOfMemoryError(CUDA_OUT_OF_MEMORY)

        def fail(operations: list[dist.P2POp]) -> Sequence[object]:
            if where == "start":
                raise torch.cuda.OutOfMemoryError(CUDA_OUT_OF_MEMORY)
            original(operations)
            return [Failing()]

        dist.batch_isend_irecv = fail  # type: ignore[assignment]
    RankExchange(ranks.rank, shards, waits=ranks.waits).fetch(x, route, label="temporal convolution").wait()
    ranks.all_gather(1)


def connect_again(seconds: float, ranks: Ranks) -> None:
    """Return the first exchange, in which rank 1 does not take part in time."""
    if ranks.rank == 1:
        time.sleep(3 * seconds)
    _connect(ranks, seconds)


def _connect(ranks: Ranks, seconds: float) -> None:
    assert ranks.liveness is not None
    store = dist.PrefixStore("again", ranks.liveness._store)
    check_connections(
        ranks.rank,
        ranks.size,
        device=ranks.device,
        store=store,
        liveness=ranks.liveness,
        timeout=seconds,
    )


def connect_without_end(seconds: float, ranks: Ranks) -> None:
    """Return the first exchange over a network on which NCCL does not get beyond connecting the ranks."""
    from vinfinity.parallel import connectivity

    connectivity.REPORT_SECONDS = 0.5
    dist.batch_isend_irecv = lambda *_: time.sleep(FOREVER)  # type: ignore[assignment]
    _connect(ranks, seconds)


class _Deaf(RankExchange):
    """Loses the messages from rank 0 to rank 2."""

    def _start(
        self, leaving: Mapping[int, Tensor], arriving: Mapping[int, Tensor], label: str
    ) -> tuple[Sequence[Work], Sequence[dist.P2POp]]:
        if self.rank == 0:
            leaving = {peer: message for peer, message in leaving.items() if peer != 2}
        return super()._start(leaving, arriving, label)


def lose_messages(seconds: float, ranks: Ranks) -> None:
    """Return the first exchange over a network on which messages from rank 0 to rank 2 are lost."""
    from vinfinity.parallel import connectivity

    connectivity._FirstExchange.__bases__ = (_Deaf,)
    _connect(ranks, seconds)


def rehearse_with_too_little_memory(
    errors: Sequence[Exception], ranks: Ranks
) -> list[tuple[int, Execution, Tensor]]:
    """Return a call of a tiny network on all ranks, of which rank 1 lacks memory for the first executions.

    errors: what each of them raises there. Returns, for each rank, the calls it needed, the execution and the
    prediction.
    """
    config = configure(
        "mini", prompt="a red ball", frames=12, size="32x32", guidance=1.4, device="cpu"
    ).config
    job = prepare(config)
    device = ranks.device
    network = load_denoiser(job, device=device, dtype=torch.float32)
    text = shared_text(job, Networks(device), ranks)
    team = ranks.team(12, split=False)
    calls = 0

    def lack_memory(*_: object) -> None:
        nonlocal calls
        calls += 1
        if ranks.rank == 1 and calls <= len(errors):
            raise errors[calls - 1]

    network.register_forward_pre_hook(lack_memory)
    executions = [Execution(branches=1, skips="device", chunk_bytes=2**20 * size) for size in (3, 2, 1)]
    denoiser, execution = fitting_denoiser(
        job,
        network,
        text,
        team,
        team.exchange(),
        ranks,
        fit=Fit(executions, ample=False, keeps=False),
        t=999.0,
        rehearsed=True,
    )
    x = initial_state(job, job.selection.of(team.held)).x
    with torch.no_grad():
        prediction = denoiser.call(x, 999.0)
    return ranks.all_gather((calls, execution, prediction))


def allocator_settings(_: None, ranks: Ranks) -> list[str]:
    """How the allocator of each rank is configured."""
    return ranks.all_gather(os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""))


def add_up(_: None, ranks: Ranks) -> int:
    """All is well."""
    return sum(ranks.all_gather(ranks.rank + 1))


def watchdog(_: None, ranks: Ranks) -> str:
    """How the launcher has set NCCL's watchdog."""
    return os.environ.get(ERROR_HANDLING, "")


def end_after_a_checkpoint(folder: Path, ranks: Ranks) -> None:
    """Rank 1 is killed as soon as rank 0 has written the manifest of a checkpoint, for which all ranks wait."""
    team, checkpoint = ranks.team(6, split=False), folder / "checkpoints" / "step-0001"
    x = torch.zeros(1, 4, len(team.held), 2, 2)
    if ranks.rank == 1:
        ranks.all_gather([write_part(checkpoint, team.held, {"x": x})])
        while not (checkpoint / "manifest.json").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints = Checkpoints(
        RunFolder(folder),
        CheckpointPlan(select_all(6, seed=0), steps=50, config=CheckpointConfig(every="1 steps")),
        ranks=ranks,
        team=team,
        progress=Progress(enabled=False),
    )
    checkpoints.after(State(step=1, x=x), Votes([checkpoints.vote(True)]))
