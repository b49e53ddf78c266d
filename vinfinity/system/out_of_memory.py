"""Out-of-memory errors: recognised in all the forms that torch reports, and turned into one line."""

import contextlib
import re
from collections.abc import Iterator

import torch

from vinfinity.errors import OutOfMemoryError, one_line

# Phrases from the errors of torch's allocators (the first two on a CPU), of CUDA and NCCL, and of cuBLAS and cuDNN. The
# last one: torch's allocator asks NVML which processes use the memory, and fails at that in a MIG slice, on Jetson, or
# with a broken NVML.
MESSAGES = (
    r"can't allocate memory|not enough memory|out of memory|status_alloc_failed"
    r"|nvml_success.*cudacachingallocator\.cpp"
)
# remedies if memory does not suffice for a video, or for using a GPU at all
REMEDY = "try memory=low, a smaller --size, fewer --frames, or more --gpus"
GPU_REMEDY = (
    "end other programs on this GPU (nvidia-smi lists them), or choose another GPU with CUDA_VISIBLE_DEVICES"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(
        re.search(MESSAGES, str(error), re.IGNORECASE | re.DOTALL)
    )


def describe(error: BaseException, *, where: str, remedy: str = REMEDY) -> str:
    """Return one line: what was needed, what was free, what to do. where: for instance `rank 1 on cuda:1`."""
    text = one_line(error)
    needed = re.search(r"[Tt]ried to allocate ([\d.,]+ (?:bytes|[KMGT]iB))", text)
    free = re.search(r"total capacity of ([\d.]+ [KMGT]iB) of which ([\d.]+ [KMGT]iB) is free", text)
    parts = [f"{needed[1]} more needed"] if needed else []
    parts += [f"{free[2]} of {free[1]} free"] if free else []
    detail = f": {', '.join(parts)}" if parts else ""
    return f"{where}: out of memory{detail}; {remedy}"


@contextlib.contextmanager
def named_out_of_memory(where: str, *, remedy: str = REMEDY) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into OutOfMemoryError. where, remedy: see `describe`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(describe(error, where=where, remedy=remedy)) from error
