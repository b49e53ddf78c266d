"""How much memory a run needs, and how much a rank may use."""

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
from vinfinity.weights.load import MAPPED

# What allocators take for the tensors. glibc's keeps many freed blocks (`vinfinity bench memory --check`); the figures
# for GPUs, with expandable segments and without, come from a model of torch's allocator (docs/decisions/0015).
CPU_OVERHEAD, EXPANDABLE_OVERHEAD, SEGMENT_OVERHEAD = 1.6, 1.10, 1.35
# What each rank leaves free on its GPU: CUDA's context, the workspaces of cuBLAS and cuDNN, NCCL's buffers.
GPU_RESERVE = 1_500_000_000
# Python and torch on the host, without and with CUDA's libraries
PROCESS = 400 * 2**20
CUDA_PROCESS = 2 * 2**30
# the part of a weight file that is mapped at one time, and its copy
LOADING = 2 * MAPPED * 4
# frames that the encoder keeps, in 4:2:0: a look-ahead of 40, references, threads
X264_FRAMES = 64
# frames that FFmpeg keeps while it reads a video, in 4:2:0: references, those that wait for their turn, threads
READ_FRAMES = 32


@dataclass(frozen=True)
class Budget:
    """Memory that each rank may use, in bytes: of its device and of the host, None if unknown.

    On the CPU, where both are one, only the host's counts. where: name of the device, for messages.
    """

    device: int | None
    host: int | None
    where: str


@dataclass(frozen=True)
class RunMemory:
    """Peak memory of the rank that needs the most, in bytes.

    The phases of a run (encoding, text, steps, decoding) do not overlap. encoding: of the video or the pictures to
    start from, None without. latents, loading, pictures, reading, process: on the host. pictures: of decoding. reading:
    of encoding. kept: whether the networks of all phases stay loaded; otherwise each is loaded for its phase.
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
        """On the device that the networks run on."""
        phases = [
            phase for phase in (self.encoding, self.text, self.step, self.decoding) if phase is not None
        ]
        if self.kept:
            return sum(phase.weights for phase in phases) + max(phase.working for phase in phases)
        return max(phase.device for phase in phases)

    @property
    def host(self) -> int:
        """On rank 0, which writes the video."""
        return (
            self.process + self.step.host + max(self.loading, self.latents + max(self.pictures, self.reading))
        )

    def needs(self, device: DeviceType) -> tuple[int, int]:
        """Bytes needed on the device and on the host, with what allocators and libraries take; on the CPU all on the
        host.
        """
        tensors = round(allocator_overhead(device) * self.device)
        return (0, tensors + self.host) if device == "cpu" else (tensors + GPU_RESERVE, self.host)

    def fits(self, budget: Budget, device: DeviceType) -> bool:
        """Whether each rank has that much. An unknown budget counts as enough."""
        needs, available = self.needs(device), (budget.device, budget.host)
        return all(have is None or need <= have for need, have in zip(needs, available, strict=True))


def allocator_overhead(device: DeviceType) -> float:
    """The memory that the device's allocator takes for one byte of tensors, as it is configured in this process."""
    if device == "cpu":
        return CPU_OVERHEAD
    return EXPANDABLE_OVERHEAD if uses_expandable_segments(os.environ) else SEGMENT_OVERHEAD


def trace_memory(run: Outline, execution: Execution) -> RunMemory:
    """Traces the memory of a run's fullest rank."""
    c, h, w = run.latent
    picture, turns = run.picture_bytes, run.turns
    encoder, at_once = run.encoder, run.encoded_at_once
    encoding = None if encoder is None else trace_encode(encoder, at_once, run.size, run.latent)
    return RunMemory(
        execution=execution,
        step=step_memory(run.call, execution, run.sampler, branches=run.branches_per_rank),
        decoding=trace_decode(run.decoder, run.blocks, run.latent[1:]),
        text=trace_text(
            run.card.family,
            run.card.configs[TEXT_ENCODER],
            run.call.dtype,
            texts=run.branches,
            tokens=run.card.text_length,
        ),
        # this rank's, in fp32, twice while they are written
        latents=2 * run.call.frames * c * h * w * 4,
        loading=LOADING,
        pictures=turns.held * turns.length * run.decoder.config.time_downscale * picture
        + X264_FRAMES * picture // 2,
        process=CUDA_PROCESS if run.device == "cuda" else PROCESS,
        encoding=encoding,
        reading=_reading(run),
    )


def _reading(run: Outline) -> int:
    """Bytes on rank 0 while the video or the pictures to start from are read: what each rank encodes at once, as
    pictures and as one tensor, and the frames of the file.

    The file's size is not known to a plan, which needs no files; it is taken for that of the video.
    """
    width, height = run.size
    frames = (
        (run.encoding_ranks + 1) * run.encoded_at_once * run.card.geometry.time_downscale * width * height * 3
    )
    return frames + READ_FRAMES * width * height * 3 // 2 if run.encoder is not None else 0


def memory_bound(run: Outline, execution: Execution) -> int:
    """An upper bound on the memory of a run on the CPU, in bytes, without tracing it, whether networks are kept or not.

    64 of its largest hidden states, twice the decoder's block, and everything that does not depend on the video. Far
    too much for long videos, but enough to let short ones start immediately.
    """
    c, h, w = run.latent
    traits = run.card.traits.denoiser
    state = hidden_state_bytes(run, execution, channels=traits.widest)
    latents = 4 * run.latent_frames * c * h * w * 4
    parameters = traits.parameters + run.card.traits.text_parameters
    blocks = 2 * run.blocks.bytes
    if run.encoder is not None:
        blocks += 2 * run.encoded_at_once * frame_bytes(run.encoder.config, (h, w)) + _reading(run)
    return 64 * state + blocks + 4 * parameters + parameter_bytes(run.decoder) + latents + PROCESS + LOADING


def hidden_state_bytes(run: Outline, execution: Execution, *, channels: int) -> int:
    """Bytes of one hidden state of the fullest rank at full resolution."""
    _, h, w = run.latent
    return execution.branches * run.call.frames * h * w * channels * run.call.dtype.itemsize


def gigabytes(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
