"""The backends through which ranks can talk with this build of torch, and what to try if they do not connect."""

import torch.distributed as dist

# by the type of the ranks' devices
CONNECTION_REMEDIES = {
    "cuda": "try NCCL_P2P_DISABLE=1; give containers more shared memory (/dev/shm, --shm-size 8g); set"
    " NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the network between the nodes; NCCL_DEBUG=INFO says more",
    "cpu": "set GLOO_SOCKET_IFNAME to the interface of the network between the nodes",
}


def backends() -> tuple[str, ...]:
    """Return the backends of process groups that this build of torch has: gloo for CPUs, nccl for GPUs."""
    if not dist.is_available():
        return ()
    available = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available}
    return tuple(name for name, found in available.items() if found())
