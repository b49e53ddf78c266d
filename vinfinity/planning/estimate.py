"""How long a run may take on GPUs that nobody has here: from published figures and what was traced."""

from dataclasses import dataclass

from vinfinity.planning.machines import Gpu
from vinfinity.planning.meter import Work

# What of a GPU's published rates kernels reach. Both were chosen such that the paper's three runs come out
# (VideoCrafter2, 512x320, 30 steps, guidance, 8 x RTX 6000 Ada; arXiv 2406.16260): docs/decisions/0007 has the figures.
TENSOR, BANDWIDTH = 0.4, 0.6
LINK = 0.5  # of a link's rate, for messages of megabytes
LAUNCH = 5e-6  # seconds that a kernel takes at least
FP32 = 0.5  # fp32 runs on tensor cores as tf32, at half the rate of fp16

ASSUMED = (
    f"An estimate: each operation takes the longer of its arithmetic at {TENSOR:.0%} of the published dense tensor rate"
    f"\nand its bytes at {BANDWIDTH:.0%} of the memory's bandwidth, {LAUNCH * 1e6:.0f} µs at least; messages at"
    f" {LINK:.0%} of the link,\nnot overlapped. Loading weights and encoding the MP4 are left out."
)


@dataclass(frozen=True)
class Seconds:
    """Of a whole run. exchange: for messages between ranks."""

    denoising: float
    exchange: float
    decoding: float

    @property
    def total(self) -> float:
        return self.denoising + self.exchange + self.decoding


def work_seconds(work: Work, gpu: Gpu, *, times: int = 1, half: bool = True) -> float:
    """Seconds of the operations of `work`, each over `times` as much at once."""
    tensor = gpu.tensor * TENSOR * (1.0 if half else FP32)
    bandwidth = gpu.bandwidth * BANDWIDTH
    return sum(
        count * max(times * flops / tensor, times * moved / bandwidth, LAUNCH)
        for (flops, moved), count in work.operations.items()
    )


def exchange_seconds(sent: float, gpu: Gpu) -> float:
    """Seconds to send that many bytes."""
    return sent / (gpu.link * LINK)
