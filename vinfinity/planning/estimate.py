"""Estimate the time of a run on GPUs that this machine lacks, from published figures and traced operations."""

from dataclasses import dataclass
from typing import Literal

import torch

from vinfinity.planning.machines import Gpu
from vinfinity.planning.meter import WorkCounter

# Fractions of a GPU's published rates that kernels reach. Both were fitted to the paper's three runs (VideoCrafter2,
# 512x320, 30 steps, guidance, 8 x RTX 6000 Ada; arXiv 2406.16260); docs/decisions/0007 has the figures.
TENSOR_SHARE, BANDWIDTH_SHARE = 0.4, 0.34
# fraction of a link's rate that messages of several megabytes reach
LINK_SHARE = 0.5
# minimum time of a kernel
LAUNCH_SECONDS = 5e-6
# how matrix products are computed: in 16 bits, in TF32 on tensor cores, or in fp32
Products = Literal["half", "tf32", "fp32"]

ASSUMPTIONS = (
    f"An estimate. Each operation takes the longer of its arithmetic at {TENSOR_SHARE:.0%} of the published dense"
    f" tensor rate\nand its bytes at {BANDWIDTH_SHARE:.0%} of the memory's bandwidth, at least"
    f" {LAUNCH_SECONDS * 1e6:.0f} µs. Messages take {LINK_SHARE:.0%} of the link's rate\nand are not overlapped."
    " Loading weights and writing the video are not included."
)


def denoiser_products(dtype: torch.dtype) -> Products:
    """Return how a denoiser in `dtype` computes matrix products (system/precision.py)."""
    return "fp32" if dtype == torch.float32 else "half"


@dataclass(frozen=True)
class Seconds:
    """The time of a whole run. exchange: the messages between ranks. encoding: encoding the source video."""

    denoising: float
    exchange: float
    decoding: float
    encoding: float = 0.0

    @property
    def total(self) -> float:
        """The time of all phases together."""
        return self.encoding + self.denoising + self.exchange + self.decoding


def work_seconds(work: WorkCounter, gpu: Gpu, *, batch: int = 1, products: Products = "half") -> float:
    """Return the seconds that the operations of `work` take, each on a batch `batch` times as large."""
    tensor = TENSOR_SHARE * {"half": gpu.tensor, "tf32": gpu.tensor / 2, "fp32": gpu.fp32}[products]
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
    return sum(
        count * max(batch * flops / tensor, batch * moved / bandwidth, LAUNCH_SECONDS)
        for (flops, moved), count in work.operations.items()
    )


def exchange_seconds(sent: float, gpu: Gpu) -> float:
    """Return the seconds that it takes to send `sent` bytes."""
    return sent / (gpu.link * LINK_SHARE)
