"""How ranks could talk with this build of torch."""

import torch.distributed as dist


def backends() -> tuple[str, ...]:
    """The backends of process groups that this build of torch has: gloo for CPUs, nccl for GPUs."""
    if not dist.is_available():
        return ()
    available = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    return tuple(name for name, found in available.items() if found())
