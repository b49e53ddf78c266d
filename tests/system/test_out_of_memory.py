"""A lack of memory is recognised in all its forms, and is one line with a remedy."""

import pytest
import torch
from oracles.fault_work import (
    CUBLAS_OUT_OF_MEMORY,
    CUDA_OUT_OF_MEMORY,
    MIG_OUT_OF_MEMORY,
    NCCL_OUT_OF_MEMORY,
)

from vinfinity.errors import OutOfMemoryError
from vinfinity.system.out_of_memory import REMEDY, describe, is_out_of_memory, named_out_of_memory


def test_what_was_needed_and_what_was_free_is_said() -> None:
    line = describe(torch.cuda.OutOfMemoryError(CUDA_OUT_OF_MEMORY), where="rank 1 on cuda:1")
    assert line == (
        f"rank 1 on cuda:1: out of memory: 944.00 MiB more needed, 61.00 MiB of 23.65 GiB free; {REMEDY}"
    )
    assert (
        describe(RuntimeError("CUDA error: out of memory"), where="cuda:0")
        == f"cuda:0: out of memory; {REMEDY}"
    )


def test_a_real_lack_of_memory_on_a_cpu_is_recognised() -> None:
    with (
        pytest.raises(
            OutOfMemoryError, match=r"^cpu: out of memory: 4611686018427387904 bytes more needed; try"
        ) as caught,
        named_out_of_memory("cpu"),
    ):
        torch.empty(2**60, dtype=torch.float32)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (torch.cuda.OutOfMemoryError(CUDA_OUT_OF_MEMORY), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError(NCCL_OUT_OF_MEMORY), True),
        (RuntimeError(CUBLAS_OUT_OF_MEMORY), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError(MIG_OUT_OF_MEMORY), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        # NVML is also asked whether GPUs are connected
        (RuntimeError(MIG_OUT_OF_MEMORY.replace("CUDACachingAllocator", "PeerToPeerAccess")), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_only_a_lack_of_memory_is_taken_for_one(error: Exception, lacks: bool) -> None:
    assert is_out_of_memory(error) == lacks
    with pytest.raises(OutOfMemoryError if lacks else type(error)), named_out_of_memory("cpu"):
        raise error
