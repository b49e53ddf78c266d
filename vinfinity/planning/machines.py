"""Published figures of GPUs, and the free memory of this machine's GPUs."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vinfinity.errors import InputError, nearest
from vinfinity.machine.nvidia import list_cards, visible_cards
from vinfinity.machine.probe import attempt, known
from vinfinity.system.out_of_memory import GPU_REMEDY, named_out_of_memory

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU by its manufacturer's figures.

    tensor: the rate of dense fp16 and bf16 products accumulated in fp32, in operations per second; TF32 runs at half
    this rate. fp32: the rate of products without tensor cores. memory: in bytes, as the driver reports it with the
    default setting of error correction. bandwidth: the memory's, in bytes per second. link: the rate to a neighbour in
    one direction, in bytes per second; that of PCIe if NVLink is optional.
    """

    tensor: float
    fp32: float
    memory: int
    bandwidth: float
    link: float


def _gpu(*, teraflops: float, fp32: float, gigabytes: float, bandwidth: float, link: float) -> Gpu:
    return Gpu(
        tensor=teraflops * 1e12,
        fp32=fp32 * 1e12,
        memory=round(gigabytes * GIB),
        bandwidth=bandwidth * 1e9,
        link=link * 1e9,
    )


# If a data sheet gives a tensor rate "with sparsity", half of it is the dense rate.
GPUS: Mapping[str, Gpu] = {
    # NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A (GeForce accumulates in fp32 at half rate)
    "RTX 3090": _gpu(teraflops=71.0, fp32=35.6, gigabytes=24, bandwidth=936, link=32),
    # NVIDIA Ada GPU Architecture whitepaper, appendix A
    "RTX 4090": _gpu(teraflops=165.2, fp32=82.6, gigabytes=24, bandwidth=1008, link=32),
    # NVIDIA RTX A5000 data sheet: 222.2 with sparsity
    "RTX A5000": _gpu(teraflops=111.1, fp32=27.8, gigabytes=24, bandwidth=768, link=32),
    # NVIDIA RTX A6000 data sheet: 309.7 with sparsity
    "RTX A6000": _gpu(teraflops=154.8, fp32=38.7, gigabytes=48, bandwidth=768, link=32),
    # NVIDIA RTX 6000 Ada Generation data sheet (1457 for fp8 with sparsity) and Ada whitepaper, appendix
    "RTX 6000 Ada": _gpu(teraflops=364.2, fp32=91.1, gigabytes=48, bandwidth=960, link=32),
    # NVIDIA L40S data sheet: 733 with sparsity; 48 GB, 45 of them with error correction
    "L40S": _gpu(teraflops=362.1, fp32=91.6, gigabytes=45, bandwidth=864, link=32),
    # NVIDIA A100 Tensor Core GPU data sheet, the SXM boards: NVLink 600 GB/s, both directions together
    "A100 40GB": _gpu(teraflops=312, fp32=19.5, gigabytes=39.5, bandwidth=1555, link=300),
    "A100 80GB": _gpu(teraflops=312, fp32=19.5, gigabytes=79.1, bandwidth=2039, link=300),
    # NVIDIA H100 Tensor Core GPU data sheet: 1,979 and 1,513 with sparsity; NVLink 900 GB/s on SXM, PCIe 5 on PCIe
    "H100 PCIe": _gpu(teraflops=756, fp32=51, gigabytes=79.1, bandwidth=2000, link=64),
    "H100 SXM": _gpu(teraflops=989, fp32=67, gigabytes=79.1, bandwidth=3350, link=450),
    # NVIDIA H200 Tensor Core GPU data sheet
    "H200": _gpu(teraflops=989, fp32=67, gigabytes=139.8, bandwidth=4800, link=450),
}


def find_gpu(name: str) -> str:
    """Return the name in `GPUS` of a GPU, given in any case and with or without spaces.

    Raises InputError if it is unknown.
    """
    plain = {_plain(known): known for known in GPUS}
    if _plain(name) in plain:
        return plain[_plain(name)]
    close = nearest(_plain(name), list(plain))
    hint = f"did you mean {plain[close]}? " if close else ""
    raise InputError("--gpu", name, f"{hint}known GPUs: {', '.join(GPUS)}", problem="is not a known GPU")


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum()).removeprefix("nvidia")


def free_on_gpus(count: int) -> tuple[int, str]:
    """Return the bytes free on each of this machine's first `count` GPUs, and the name of the one with the least.

    Queries the driver: torch would create a context on every GPU, which takes about 0.5 GB of each.
    """
    tool = shutil.which("nvidia-smi")
    cards = [] if tool is None else (known(attempt(list_cards, tool)) or [])
    visible = visible_cards([card for card, _ in cards], os.environ.get("CUDA_VISIBLE_DEVICES"))[:count]
    fullest = min(visible, key=lambda card: card.free or 0, default=None)
    if fullest is not None and fullest.free is not None:
        return fullest.free, fullest.name
    # the driver's tool is missing, as in many containers, or this is a part of a GPU (MIG)
    device = torch.device("cuda", 0)
    with named_out_of_memory(str(device), remedy=GPU_REMEDY):
        return free_on_device(device), torch.cuda.get_device_name(device)


def free_on_device(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a GPU: free memory plus its own unused cache."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
