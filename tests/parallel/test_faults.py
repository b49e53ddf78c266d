"""What happens to all ranks when one hangs, fails or runs out of memory, whatever the transport does about it.

GPUs are pretended: their waits for messages are seen in events, and never raise.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from oracles import fault_work

from vinfinity.errors import OutOfMemoryError, RankError, VinfinityError
from vinfinity.parallel.join import ERROR_HANDLING, configure_nccl
from vinfinity.parallel.launch import launch
from vinfinity.parallel.ranks import Ranks

# enough for ranks to start under load; what is tested here ends long before
TIMEOUT = 120.0


def failure(worker: Callable[..., object], payload: object = None, *, ranks: int = 3) -> VinfinityError:
    with pytest.raises(VinfinityError) as caught:
        launch(worker, payload, gpus=ranks, device="cpu", timeout=TIMEOUT)
    return caught.value


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (fault_work.suspend, "rank 1 did not answer in time ("),
        (fault_work.hang, "rank 1 did not answer in time (waited for it in: temporal attention 1)"),
        (fault_work.hang_in_transport, "no messages arrive between the ranks"),
        (
            fault_work.hang_until_aborted,
            "rank 1 did not answer in time (waited for it in: temporal attention 1)",
        ),
        (fault_work.abort, "rank 1 was killed by SIGABRT"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_rank_that_does_not_answer_is_named(worker: Callable[..., object], message: str) -> None:
    error = failure(worker)
    assert isinstance(error, RankError)
    assert error.exit_code == 3
    assert error.message.startswith(message)


def test_an_error_ends_all_ranks_although_nccls_cleanup_would_block() -> None:
    error = failure(fault_work.raise_while_others_wait)
    assert error.exit_code == 1
    assert error.message.startswith("rank 1: KeyError: 'missing' (")


def test_ranks_end_although_nccls_cleanup_would_block() -> None:
    assert launch(fault_work.finish_with_a_slow_cleanup, None, gpus=3, device="cpu", timeout=TIMEOUT) == 3


@pytest.mark.parametrize(
    ("worker", "payload"),
    [
        (fault_work.run_out_of_memory, None),
        (fault_work.run_out_of_memory_in_an_exchange, "start"),
        (fault_work.run_out_of_memory_in_an_exchange, "wait"),
    ],
)
def test_a_lack_of_memory_is_named_with_a_remedy(worker: Callable[..., object], payload: object) -> None:
    error = failure(worker, payload)
    assert isinstance(error, OutOfMemoryError)
    assert error.exit_code == 2
    assert error.message == (
        "rank 1 on cpu: out of memory: 944.00 MiB more needed, 61.00 MiB of 23.65 GiB free; try memory=low, a smaller"
        " --size, fewer --frames, or more --gpus"
    )


def test_a_rank_that_misses_the_first_exchange_is_named() -> None:
    error = failure(fault_work.connect_again, 1.0)
    assert isinstance(error, RankError)
    assert "no message arrived from rank 1 to rank 0" in error.message


def test_ranks_that_are_never_connected_end_with_remedies() -> None:
    error = failure(fault_work.connect_without_end, 1.0)
    assert isinstance(error, RankError)
    assert error.message == (
        "the ranks were not connected within 1 s; set GLOO_SOCKET_IFNAME to the interface of the network between the"
        " nodes"
    )


def test_pairs_of_ranks_that_cannot_reach_each_other_are_named_with_remedies() -> None:
    error = failure(fault_work.lose_messages, 2.0)
    assert isinstance(error, RankError)
    assert error.message == (
        "no message arrived from rank 0 to rank 2 within 2 s of the first exchange; set GLOO_SOCKET_IFNAME to the"
        " interface of the network between the nodes"
    )


# ---- the rehearsal ----


@pytest.mark.parametrize(
    "lack",
    [
        torch.cuda.OutOfMemoryError(fault_work.CUDA_OUT_OF_MEMORY),
        RuntimeError(fault_work.CUBLAS_OUT_OF_MEMORY),
        RuntimeError(fault_work.MIG_OUT_OF_MEMORY),
    ],
    ids=["allocator", "cuBLAS", "allocator in a MIG slice"],
)
def test_all_ranks_take_the_next_execution_if_one_rank_lacks_memory(lack: Exception) -> None:
    found = launch(fault_work.rehearse_with_too_little_memory, [lack], gpus=3, device="cpu", timeout=TIMEOUT)
    assert {execution.chunk_bytes for _, execution, _ in found} == {2 * 2**20}
    # the first two executions, in which both branches of guidance are computed, and the call itself
    calls = [calls for calls, _, _ in found]
    assert calls[0] == calls[2] == 6
    assert calls[1] == 5
    predictions = torch.cat([prediction for _, _, prediction in found], dim=2)
    alone = Ranks(device=torch.device("cpu"))
    [(_, _, expected)] = fault_work.rehearse_with_too_little_memory([], alone)
    assert torch.equal(predictions, expected)


def test_a_run_that_fits_in_no_execution_ends_on_all_ranks_with_a_remedy() -> None:
    lack = torch.cuda.OutOfMemoryError(fault_work.CUDA_OUT_OF_MEMORY)
    error = failure(fault_work.rehearse_with_too_little_memory, [lack] * 99)
    assert isinstance(error, OutOfMemoryError)
    assert error.message.startswith("rank 1 on cpu: out of memory: 944.00 MiB more needed")


# ---- a library under torchrun ----


def under_torchrun(worker: Callable[..., object]) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "oracles.launched",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [*command, worker.__name__], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
def test_ranks_of_torchrun_join_and_leave() -> None:
    done = under_torchrun(fault_work.add_up)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "3"]


@pytest.mark.parametrize(
    ("launcher", "given", "used"),
    [
        ("srun", None, "0"),
        ("srun", "1", "1"),
        ("torchrun", None, "0"),
        # what torchrun sets by itself
        ("torchrun", "1", "0"),
        ("torchrun", "3", "3"),
    ],
)
def test_nccls_watchdog_is_off_unless_the_user_wants_it(launcher: str, given: str | None, used: str) -> None:
    environment = {} if given is None else {ERROR_HANDLING: given}
    configure_nccl(launcher, environment)
    assert environment == {ERROR_HANDLING: used, "TORCH_NCCL_HIGH_PRIORITY": "1"}


@pytest.mark.slow
def test_torchrun_switches_nccls_watchdog_on() -> None:
    done = under_torchrun(fault_work.watchdog)
    assert done.stdout.split() == ["1", "1"], done.stderr


@pytest.mark.slow
def test_a_rank_of_torchrun_that_hangs_is_named() -> None:
    """Rank 0 waits where nothing raises; its thread says so, and ends it."""
    done = under_torchrun(fault_work.hang)
    assert done.returncode == 1
    assert "error: rank 1 did not answer in time (waited for it in: temporal attention 1)" in done.stderr
