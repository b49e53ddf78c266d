"""The memory that a run needs, and the memory that a rank may use."""

import os
from dataclasses import dataclass

from vinfinity.denoise.execution import Execution
from vinfinity.media.encode import frame_bytes
from vinfinity.models.family import TEXT_ENCODER
from vinfinity.planning.outline import DeviceType, Outline
from vinfinity.planning.trace import (
    NetworkMemory,
    StepMemory,
    parameter_bytes,
    step_memory,
    trace_decode,
    trace_encode,
    trace_text,
)
from vinfinity.system.pytorch import uses_expandable_segments
from vinfinity.weights.load import MAPPED_ELEMENTS

# Memory that allocators take per byte of tensors. glibc keeps many freed blocks (`vinfinity bench memory --check`); the
# factors for GPUs, with and without expandable segments, come from a model of torch's allocator (docs/decisions/0015).
CPU_OVERHEAD, EXPANDABLE_OVERHEAD, SEGMENT_OVERHEAD = 1.6, 1.10, 1.35
# Memory that each rank leaves to libraries on its GPU: CUDA's context, workspaces of cuBLAS and cuDNN, NCCL's buffers.
GPU_RESERVE = 1_500_000_000
# Python and torch on the host, without and with CUDA's libraries
PROCESS_BYTES = 400 * 2**20
CUDA_PROCESS_BYTES = 2 * 2**30
# the part of a weight file that is mapped at one time, and its copy
LOADING_BYTES = 2 * MAPPED_ELEMENTS * 4
# frames that the encoder keeps, in 4:2:0: a look-ahead of 40, references, threads
X264_FRAMES = 64
# frames that FFmpeg keeps while it reads a video, in 4:2:0: references, frames to reorder, threads
READ_FRAMES = 32
# what `memory_bound` assumes to be alive at one time: hidden states, decoder blocks and copies of the latents
BOUND_HIDDEN_STATES, BOUND_BLOCKS, BOUND_LATENTS = 64, 2, 4
FP32_BYTES = 4


@dataclass(frozen=True)
class Budget:
    """The memory that each rank may use, in bytes: on its device and on the host, None if unknown.

    On a CPU, device and host memory are the same; only `host` is used. where: the name of the device, for messages.
    """

    device: int | None
    host: int | None
    where: str


@dataclass(frozen=True)
class RunMemory:
    """Peak memory of the rank that needs the most, in bytes.

    The phases of a run (encoding, text, steps, decoding) do not overlap. encoding: encoding the source video or the
    pictures, None without them. latents, loading, pictures, reading, process: memory on the host; pictures is needed
    while decoding, reading while encoding. kept: whether the networks of all phases stay loaded; otherwise each is
    loaded for its phase.
    """

    execution: Execution
    step: StepMemory
    decoding: NetworkMemory
    text: NetworkMemory
    latents: int
    loading: int
    pictures: int
    process: int
    encoding: NetworkMemory | None = None
    reading: int = 0
    kept: bool = False

    @property
    def device(self) -> int:
        """Peak on the device that the networks run on."""
        phases = [
            phase for phase in (self.encoding, self.text, self.step, self.decoding) if phase is not None
        ]
        if self.kept:
            return sum(phase.weights for phase in phases) + max(phase.working for phase in phases)
        return max(phase.device for phase in phases)

    @property
    def host(self) -> int:
        """Peak on the host of rank 0, which writes the video."""
        return (
            self.process + self.step.host + max(self.loading, self.latents + max(self.pictures, self.reading))
        )

    def needs(self, device: DeviceType) -> tuple[int, int]:
        """Return the bytes needed on the device and on the host, including allocators and libraries.

        On a CPU, all of it is on the host.
        """
        tensors = round(allocator_overhead(device) * self.device)
        return (0, tensors + self.host) if device == "cpu" else (tensors + GPU_RESERVE, self.host)

    def fits(self, budget: Budget, device: DeviceType) -> bool:
        """Return whether each rank has enough memory. An unknown budget counts as enough."""
        needs, available = self.needs(device), (budget.device, budget.host)
        return all(have is None or need <= have for need, have in zip(needs, available, strict=True))


def allocator_overhead(device: DeviceType) -> float:
    """Return the bytes that the device's allocator takes per byte of tensors, as configured in this process."""
    if device == "cpu":
        return CPU_OVERHEAD
    return EXPANDABLE_OVERHEAD if uses_expandable_segments(os.environ) else SEGMENT_OVERHEAD


def trace_memory(run: Outline, execution: Execution) -> RunMemory:
    """Trace the memory of the rank with the most frames."""
    c, h, w = run.latent_shape
    picture, turns = run.picture_bytes, run.turns
    encoder, at_once = run.encoder, run.encoded_at_once
    encoding = None if encoder is None else trace_encode(encoder, at_once, run.size, run.latent_shape)
    return RunMemory(
        execution=execution,
        step=step_memory(run.call, execution, run.sampler, branches=run.branches_per_rank),
        decoding=trace_decode(run.decoder, run.blocks, run.latent_shape[1:]),
        text=trace_text(
            run.card.family,
            run.card.configs[TEXT_ENCODER],
            run.call.dtype,
            texts=run.branches,
            tokens=run.card.text_length,
        ),
        # two copies of this rank's latents, in fp32, while they are written
        latents=2 * run.call.frames * c * h * w * FP32_BYTES,
        loading=LOADING_BYTES,
        pictures=turns.held * turns.length * run.decoder.config.time_downscale * picture
        + X264_FRAMES * picture // 2,
        process=CUDA_PROCESS_BYTES if run.device == "cuda" else PROCESS_BYTES,
        encoding=encoding,
        reading=_reading(run),
    )


def _reading(run: Outline) -> int:
    """Return the bytes on rank 0 while the source video or the pictures are read.

    They hold what each rank encodes at once, as pictures and as one tensor, and the decoded frames of the file. A plan
    opens no files: it assumes that the file has the size of the video.
    """
    width, height = run.size
    frames = (
        (run.encoding_ranks + 1) * run.encoded_at_once * run.card.geometry.time_downscale * width * height * 3
    )
    return frames + READ_FRAMES * width * height * 3 // 2 if run.encoder is not None else 0


def memory_bound(run: Outline, execution: Execution) -> int:
    """Return an upper bound on the memory of a run on the CPU, in bytes, without tracing it.

    Counts several of the largest hidden states, decoder blocks and copies of the latents, and everything that does not
    depend on the video. Holds whether networks are kept or not. A gross overestimate for long videos, but good enough
    to start short ones immediately.
    """
    c, h, w = run.latent_shape
    traits = run.card.traits.denoiser
    state = hidden_state_bytes(run, execution, channels=traits.widest)
    latents = BOUND_LATENTS * run.denoised_frames * c * h * w * FP32_BYTES
    parameters = traits.parameters + run.card.traits.text_parameters
    blocks = BOUND_BLOCKS * run.blocks.bytes
    if run.encoder is not None:
        blocks += BOUND_BLOCKS * run.encoded_at_once * frame_bytes(run.encoder.config, (h, w)) + _reading(run)
    weights = FP32_BYTES * parameters + parameter_bytes(run.decoder)
    return BOUND_HIDDEN_STATES * state + blocks + weights + latents + PROCESS_BYTES + LOADING_BYTES


def hidden_state_bytes(run: Outline, execution: Execution, *, channels: int) -> int:
    """Return the bytes of one hidden state at full resolution on the rank with the most frames."""
    _, h, w = run.latent_shape
    return execution.branches * run.call.frames * h * w * channels * run.call.dtype.itemsize


def gigabytes(size: float) -> str:
    """Return a number of bytes as text, in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
