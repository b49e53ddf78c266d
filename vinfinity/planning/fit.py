"""Whether a run fits a machine's memory, how it is carried out there, and what would fit if it does not."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vinfinity.config import ComputeConfig, RunConfig, leaves
from vinfinity.denoise.execution import Execution
from vinfinity.errors import InputError
from vinfinity.job import Job
from vinfinity.parallel.place import find_place
from vinfinity.parallel.ranks import Ranks, pick_device
from vinfinity.planning.machines import free_on_device, free_on_host
from vinfinity.planning.outline import DeviceType, Outline, outline
from vinfinity.planning.trace import BlockMemory, StepMemory, step_memory, trace_decode, trace_text
from vinfinity.weights.load import MAPPED

# what allocators take beyond what is asked of them; glibc's keeps many freed blocks (`vinfinity bench memory --check`)
SLACK = {"cuda": 1.05, "cpu": 1.6}
PROCESS = 400 * 2**20  # Python and torch, on the host
CUDA_PROCESS = 2 * 2**30  # with CUDA's libraries
LOADING = 2 * MAPPED * 4  # what is mapped of a weight file at once, and its copy
X264_FRAMES = 64  # that the encoder keeps, in 4:2:0: a look-ahead of 40, references, threads
MOST_RANKS = 64  # that are proposed


@dataclass(frozen=True)
class Room:
    """Memory that each rank may use, in bytes: of its device and of the host, None where it is not known. For a run on
    the CPU, where both are one, only the host's counts. where: what it was found on.
    """

    device: int | None
    host: int | None
    where: str


@dataclass(frozen=True)
class Memory:
    """Bytes that the fullest rank holds at most. The phases of a run follow each other: text, steps, decoding."""

    execution: Execution
    step: StepMemory
    decoding: BlockMemory
    text: BlockMemory
    latents: int
    loading: int
    pictures: int
    process: int

    @property
    def device(self) -> int:
        """Where the networks run."""
        return max(self.step.device, self.decoding.device, self.text.device)

    @property
    def host(self) -> int:
        """On rank 0, which writes the video."""
        return self.process + self.step.host + max(self.loading, self.latents + self.pictures)

    def needs(self, device: DeviceType) -> tuple[int, int]:
        """Bytes to be had of the device and of the host, with allocators' slack; on the CPU all is the host's."""
        of_device = round(SLACK[device] * self.device)
        return (0, of_device + self.host) if device == "cpu" else (of_device, self.host)

    def fits(self, room: Room, device: DeviceType) -> bool:
        """Whether each rank has that much; what is not known is not asked."""
        needs = self.needs(device)
        rooms = (room.device, room.host)
        return all(have is None or need <= have for need, have in zip(needs, rooms, strict=True))


def memory_of(run: Outline, execution: Execution) -> Memory:
    """Traces what the fullest rank of a run holds."""
    c, h, w = run.latent
    width, height = run.config.resolution
    picture = width * height * 3
    return Memory(
        execution=execution,
        step=step_memory(run.clip, execution, run.sampler, branches=run.rank_branches),
        decoding=trace_decode(run.decoder, run.blocks, run.latent[1:]),
        text=trace_text(run.text, run.clip.dtype, texts=run.branches),
        latents=2 * run.clip.frames * c * h * w * 4,  # this rank's, on their way to the disk, in fp32
        loading=LOADING,
        pictures=2 * run.blocks.frames * picture + X264_FRAMES * picture // 2,
        process=CUDA_PROCESS if run.device == "cuda" else PROCESS,
    )


def bound(run: Outline, execution: Execution) -> int:
    """A number of bytes that a run on the CPU surely stays below, without tracing it: 64 of its largest hidden states,
    twice the decoder's block, and what does not depend on the video. Far too much for long videos; enough to let short
    ones start at once.
    """
    c, h, w = run.latent
    widest = max(*run.unet.block_out_channels, 8 * run.unet.attention_head_dim)
    state = hidden_state(run, execution, widest)
    layers = len(run.unet.block_out_channels) * (run.unet.layers_per_block + 1)
    weights = 256 * widest**2 * layers * 4
    latents = 4 * run.config.frames * c * h * w * 4
    return 64 * state + 2 * run.blocks.bytes + weights + latents + PROCESS + LOADING


def hidden_state(run: Outline, execution: Execution, channels: int) -> int:
    """Bytes of one hidden state of the fullest rank at full resolution."""
    _, h, w = run.latent
    return execution.branches * run.clip.frames * h * w * channels * run.clip.dtype.itemsize


def choose(run: Outline, room: Room) -> tuple[Memory, bool]:
    """The first execution that fits, and True; the leanest, and False, where none does."""
    for execution in run.executions:
        memory = memory_of(run, execution)
        if memory.fits(room, run.device):
            return memory, True
    return memory, False


def choose_execution(job: Job, ranks: Ranks) -> Execution:
    """How the UNet calls of a run are carried out: the first of its ladder that fits the rank with the least memory.

    Rank 0 decides for all: each must do the same. Raises InputError, on every rank, where none fits.
    """
    device_type: DeviceType = "cuda" if ranks.device.type == "cuda" else "cpu"
    run = outline(computed(job), job.card, device=device_type, ranks=ranks.size)
    place = find_place(os.environ)
    host = free_on_host(sharing=1 if place is None else place.local_size)
    device = free_on_device(ranks.device) if run.device == "cuda" else None
    rooms = ranks.collect(Room(device=device, host=host, where=str(ranks.device)))
    decided: Execution | InputError | None = None
    if ranks.first:
        decided = decide(run, least(rooms))
    decided = ranks.collect(decided)[0]
    if isinstance(decided, InputError):
        raise decided
    assert decided is not None
    return decided


def refuse_early(job: Job) -> None:
    """Raises InputError where a run on the CPU cannot fit, before ranks are started for it. What GPUs have free is only
    known to the ranks.
    """
    config = job.config
    if (
        find_place(os.environ) is None
        and pick_device(config.device, local_size=config.gpus or 1).type == "cpu"
    ):
        ranks = config.gpus or 1
        room = Room(device=None, host=free_on_host(sharing=ranks), where="cpu")
        decided = decide(outline(computed(job), job.card, device="cpu", ranks=ranks), room)
        if isinstance(decided, InputError):
            raise decided


def computed(job: Job) -> RunConfig:
    """The configuration of a video of as many frames as are computed."""
    return replace(job.config, frames=len(job.selection.frames))


def decide(run: Outline, room: Room) -> Execution | InputError:
    """The execution for a run, or why there is none."""
    first = run.executions[0]
    if run.device == "cpu" and room.host is not None and bound(run, first) < room.host / 2:
        return first
    memory, fits = choose(run, room)
    return memory.execution if fits else refusal(run, memory, room)


def least(rooms: list[Room]) -> Room:
    """What every rank has."""
    device = min(rooms, key=lambda room: room.device or 0)
    host = min(room.host or 0 for room in rooms)
    return replace(device, host=host)


def refusal(run: Outline, memory: Memory, room: Room) -> InputError:
    """What is said of a run that cannot fit: what it needs, what there is, and the nearest settings that fit."""
    on_device, on_host = memory.needs(run.device)
    needs = f"on {run.ranks} ranks need, each," if run.ranks > 1 else "need"
    short = [
        f"{gigabytes(need)} of {what}'s memory, of which {gigabytes(have)} are free"
        for need, have, what in ((on_device, room.device, room.where), (on_host, room.host, "the host"))
        if have is not None and need > have
    ]
    found = [" ".join(options) for options in nearest_settings(run, room)]
    remedy = f"what would fit: {', or '.join(found)}" if found else "take a machine with more memory"
    return InputError("frames", run.config.frames, remedy, problem=f"{needs} {' and '.join(short)}")


def nearest_settings(run: Outline, room: Room) -> Iterator[tuple[str, ...]]:
    """Options that would make a run fit, each by itself, each traced: memory=auto, more GPUs, fewer frames, a smaller
    size.
    """
    free = run.changed(memory="auto", compute=ComputeConfig())
    if free.config != run.config and _fits(free, room):
        before, after = leaves(run.config), leaves(free.config)
        yield tuple(f"{key}={after[key] or 'null'}" for key in before if before[key] != after[key])
    if run.blocks.frames > 1 and _fits(one := run.changed(decode=replace(run.config.decode, frames=1)), room):
        yield (f"decode.frames={one.blocks.frames}",)
        return  # the networks themselves fit
    frames = most_frames(run, room)
    if frames is not None:
        if run.device == "cuda" and (ranks := fewest_ranks(run, room, holding=frames // run.shards.ranks)):
            yield "--gpus", str(ranks)
        if run.config.edit.run is None:
            yield "--frames", str(frames)
    if (size := largest_size(run, room)) is not None:
        yield "--size", size


def _fits(run: Outline, room: Room) -> bool:
    """Whether the leanest execution fits. Two hidden states are held at the least: what those exceed is not traced."""
    execution = run.executions[-1]
    have = room.host if run.device == "cpu" else room.device
    if have is not None and 2 * hidden_state(run, execution, run.unet.block_out_channels[0]) > have:
        return False
    return memory_of(run, execution).fits(room, run.device)


def most_frames(run: Outline, room: Room) -> int | None:
    """Frames near the most that fit on as many ranks, where these do not: by the slope of two traces, then proven."""
    low, high = run.ranks, run.config.frames
    if not _fits(run.changed(frames=low), room):
        return None
    half = max(low, high // 2)
    if _fits(run.changed(frames=half), room):
        low = half
    else:
        high = half
    guess = min(_reaches(run.changed(frames=half), run, room, half, run.config.frames), high - 1)
    for part in (1.0, 0.97, 0.9, 0.5):
        frames = int(part * guess)
        if frames > low and _fits(run.changed(frames=frames), room):
            return frames
    return low


def _reaches(less: Outline, more: Outline, room: Room, at_less: float, at_more: float) -> int:
    """Where memory comes to `room` on the straight line through two runs."""
    points = [memory_of(run, run.executions[-1]).needs(run.device) for run in (less, more)]
    reached = at_more
    for have, low, high in zip((room.device, room.host), *points, strict=True):
        if have is not None and high > low:
            reached = min(reached, at_less + (have - low) / (high - low) * (at_more - at_less))
    return int(reached)


def fewest_ranks(run: Outline, room: Room, *, holding: int) -> int | None:
    """The fewest ranks that fit. holding: frames that a rank surely can hold."""
    more = 2 if run.split_branches else 1
    clips = max(run.shards.ranks + 1, -(-run.config.frames // max(holding + 1, 1)))
    for ranks in range(more * clips, more * (clips + 3) + 1, more):
        if ranks <= min(MOST_RANKS, run.config.frames) and _fits(run.changed(ranks=ranks), room):
            return ranks
    return None


def largest_size(run: Outline, room: Room) -> str | None:
    """A size of the same shape near the largest that fits, where this one does not, in whole blocks of the UNet's
    coarsest level.
    """
    sides = run.config.resolution
    block = run.card.pixels * 2 ** (len(run.unet.block_out_channels) - 1)
    longest = -(-max(sides) // block) - 1  # in blocks

    def scaled(blocks: int) -> Outline:
        width, height = (max(1, round(blocks * side / max(sides))) * block for side in sides)
        return run.changed(size=f"{width}x{height}")

    if longest < 1 or not _fits(scaled(1), room):
        return None
    areas = [math.prod(one.latent[1:]) for one in (scaled(1), run)]
    area = _reaches(scaled(1), run, room, *areas)
    blocks = min(longest, math.isqrt(max(1, area * longest**2 // areas[1])) + 1)
    while blocks > 1 and not _fits(scaled(blocks), room):
        blocks -= 1
    return scaled(blocks).config.size


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
