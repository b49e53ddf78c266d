"""Lack of memory, as torch reports it: recognised in all its forms, and turned into one line."""

import contextlib
import re
from collections.abc import Iterator

import torch

from vinfinity.errors import OutOfMemoryError, one_line

# How torch's allocators, CUDA and NCCL say it, then cuBLAS and cuDNN; the first are of CPUs. For the last one, torch's
# allocator asks NVML who has the memory, and fails at that in a MIG slice, on Jetson, or beside a broken NVML.
TEXTS = (
    r"can't allocate memory|not enough memory|out of memory|status_alloc_failed"
    r"|nvml_success.*cudacachingallocator\.cpp"
)
# what helps, by what memory did not suffice for: a video, or using a GPU at all
REMEDY = "try memory=low, a smaller --size, fewer --frames, or more --gpus"
GPU_REMEDY = (
    "end other programs on this GPU (nvidia-smi lists them), or choose another one by CUDA_VISIBLE_DEVICES"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(TEXTS, str(error), re.IGNORECASE | re.DOTALL))


def describe(error: BaseException, *, where: str, remedy: str = REMEDY) -> str:
    """One line: what was needed, what was free, what to do. where: such as `rank 1 on cuda:1`."""
    text = one_line(error)
    needed = re.search(r"[Tt]ried to allocate ([\d.,]+ (?:bytes|[KMGT]iB))", text)
    free = re.search(r"total capacity of ([\d.]+ [KMGT]iB) of which ([\d.]+ [KMGT]iB) is free", text)
    parts = [f"{needed[1]} more needed"] if needed else []
    parts += [f"{free[2]} of {free[1]} free"] if free else []
    detail = f": {', '.join(parts)}" if parts else ""
    return f"{where}: out of memory{detail}; {remedy}"


@contextlib.contextmanager
def named_out_of_memory(where: str, *, remedy: str = REMEDY) -> Iterator[None]:
    """Turn a lack of memory inside the block into OutOfMemoryError. where, remedy: see `describe`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(describe(error, where=where, remedy=remedy)) from error
