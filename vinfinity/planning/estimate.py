"""An estimate of a run's time on GPUs that are not here, from published figures and traced operations."""

from dataclasses import dataclass
from typing import Literal

import torch

from vinfinity.planning.machines import Gpu
from vinfinity.planning.meter import WorkCounter

# The share of a GPU's published rates that kernels reach. Both were fitted to the paper's three runs (VideoCrafter2,
# 512x320, 30 steps, guidance, 8 x RTX 6000 Ada; arXiv 2406.16260); docs/decisions/0007 has the figures.
TENSOR_SHARE, BANDWIDTH_SHARE = 0.4, 0.34
# the share of a link's rate that messages of megabytes reach
LINK_SHARE = 0.5
# least time of a kernel, in seconds
LAUNCH_SECONDS = 5e-6
# how products are computed: in 16 bits, in fp32 on tensor cores as TF32, or exactly
Products = Literal["half", "tf32", "fp32"]

ASSUMPTIONS = (
    f"An estimate. Each operation takes the longer of its arithmetic at {TENSOR_SHARE:.0%} of the published dense"
    f" tensor rate\nand its bytes at {BANDWIDTH_SHARE:.0%} of the memory's bandwidth, at least"
    f" {LAUNCH_SECONDS * 1e6:.0f} µs. Messages take {LINK_SHARE:.0%} of the link's rate\nand are not overlapped."
    " Loading weights and writing the video are not included."
)


def denoiser_products(dtype: torch.dtype) -> Products:
    """How a denoiser in `dtype` computes its products (system/precision.py)."""
    return "fp32" if dtype == torch.float32 else "half"


@dataclass(frozen=True)
class Seconds:
    """Time of a whole run. exchange: of the messages between ranks. encoding: of the video to start from."""

    denoising: float
    exchange: float
    decoding: float
    encoding: float = 0.0

    @property
    def total(self) -> float:
        return self.encoding + self.denoising + self.exchange + self.decoding


def work_seconds(work: WorkCounter, gpu: Gpu, *, batch: int = 1, products: Products = "half") -> float:
    """Seconds that the operations of `work` take, each on a batch `batch` times as large."""
    tensor = TENSOR_SHARE * {"half": gpu.tensor, "tf32": gpu.tensor / 2, "fp32": gpu.fp32}[products]
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
    return sum(
        count * max(batch * flops / tensor, batch * moved / bandwidth, LAUNCH_SECONDS)
        for (flops, moved), count in work.operations.items()
    )


def exchange_seconds(sent: float, gpu: Gpu) -> float:
    """Seconds that sending `sent` bytes takes."""
    return sent / (gpu.link * LINK_SHARE)
