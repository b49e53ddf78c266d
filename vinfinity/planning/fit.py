"""Whether a run fits a machine's memory, how it is carried out there, and what would fit if it does not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vinfinity.config import SMALLEST_SIDE, ComputeConfig, leaves
from vinfinity.errors import InputError
from vinfinity.execution import Execution
from vinfinity.job import Job
from vinfinity.parallel.ranks import Ranks, find_place
from vinfinity.planning.machines import free_on_device, free_on_host
from vinfinity.planning.outline import Outline, outline
from vinfinity.planning.trace import BlockMemory, StepMemory, trace_decode, trace_step, trace_text
from vinfinity.weights.load import MAPPED

SLACK = 1.05  # what allocators take beyond what is asked of them
PROCESS = 400 * 2**20  # Python and torch, on the host
CUDA_PROCESS = 2 * 2**30  # with CUDA's libraries
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
        """On rank 0, which gathers the latents and writes the video."""
        return self.process + self.step.host + max(self.loading, self.latents + self.pictures)

    def needs(self, device: str) -> tuple[int, int]:
        """Bytes to be had of the device and of the host, with allocators' slack; on the CPU all is the host's."""
        of_device = round(SLACK * self.device)
        return (0, of_device + self.host) if device == "cpu" else (of_device, self.host)

    def fits(self, room: Room, device: str) -> bool:
        """Whether each rank has that much; what is not known is not asked."""
        needs = self.needs(device)
        rooms = (room.device, room.host)
        return all(have is None or need <= have for need, have in zip(needs, rooms, strict=True))


def memory_of(run: Outline, execution: Execution) -> Memory:
    """Traces what the fullest rank of a run holds."""
    c, h, w = run.latent
    assert run.config.pixels is not None
    width, height = run.config.pixels
    picture = width * height * 3
    return Memory(
        execution=execution,
        step=trace_step(run.clip, execution, run.sampler, branches=run.rank_branches),
        decoding=trace_decode(run.vae, run.latent[1:], frames=run.decoded_at_once),
        text=trace_text(run.text, run.clip.dtype, texts=run.branches),
        latents=2 * run.config.frames * c * h * w * 4,  # the ranks' parts and the whole, in fp32
        loading=2 * MAPPED * 4,  # what is mapped of a file at once, and its copy
        pictures=2 * run.decoded_at_once * picture + X264_FRAMES * picture // 2,
        process=CUDA_PROCESS if run.device == "cuda" else PROCESS,
    )


def bound(run: Outline, execution: Execution) -> int:
    """A number of bytes that a run surely stays below, without tracing it: 64 times the largest hidden state, and as
    much of the decoder's. Far too much for long videos; enough to let short ones start at once.
    """
    _, h, w = run.latent
    widest = max(*run.unet.block_out_channels, 8 * run.unet.attention_head_dim)
    state = execution.branches * run.clip.frames * h * w * widest * run.clip.dtype.itemsize
    picture = run.decoded_at_once * h * w * run.card.pixels**2 * run.vae.block_out_channels[0] * 4
    weights = 64 * 12 * widest**2 * len(run.unet.block_out_channels) * run.unet.layers_per_block * 4
    return 64 * state + 16 * picture + weights


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
    run = outline(job.config, job.card, device="cuda" if ranks.device.type == "cuda" else "cpu", ranks=ranks.size)
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
    needs = f"{'each of the ' + str(run.ranks) + ' ranks needs' if run.ranks > 1 else 'needs'}"
    short = [
        f"{gigabytes(need)} of {what}'s memory, where {gigabytes(have)} are free"
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
    if free.config != run.config and choose(free, room)[1]:
        before, after = leaves(run.config), leaves(free.config)
        yield tuple(f"{key}={after[key] or 'null'}" for key in before if before[key] != after[key])
    frames = most_frames(run, room)
    if frames is not None:
        if run.device == "cuda" and (ranks := fewest_ranks(run, room, holding=frames // run.shards.ranks)):
            yield "--gpus", str(ranks)
        yield "--frames", str(frames)
    if (size := largest_size(run, room)) is not None:
        yield "--size", size


def _fits(run: Outline, room: Room) -> bool:
    """Whether the leanest execution fits."""
    return memory_of(run, run.executions[-1]).fits(room, run.device)


def most_frames(run: Outline, room: Room) -> int | None:
    """A number of frames near the largest that fits on as many ranks: by the slope of two traces, proven by a third."""
    least_frames = run.ranks
    if not _fits(run.changed(frames=least_frames), room):
        return None
    high, low = run.config.frames, least_frames
    points = []
    for frames in (high, max(least_frames, high // 2)):
        here = run.changed(frames=frames)
        memory = memory_of(here, here.executions[-1])
        points.append((frames, *memory.needs(run.device)))
        if memory.fits(room, run.device):
            low = max(low, frames)
        else:
            high = min(high, frames)
    guess = high - 1
    for index, have in ((1, room.device), (2, room.host)):
        (f2, b2), (f1, b1) = ((point[0], point[index]) for point in points)
        if have is not None and f2 > f1 and b2 > b1:
            guess = min(guess, f1 + int((have - b1) * (f2 - f1) / (b2 - b1)))
    for _ in range(6):
        guess = guess if low < guess < high else (low + high) // 2
        if guess <= low:
            break
        if _fits(run.changed(frames=guess), room):
            return guess
        high, guess = guess, int(guess * 0.97)
    return low


def fewest_ranks(run: Outline, room: Room, *, holding: int) -> int | None:
    """The fewest ranks that fit. holding: frames that a rank surely can hold."""
    more = 2 if run.split_branches else 1
    clips = max(run.shards.ranks + 1, -(-run.config.frames // max(holding + 1, 1)))
    for ranks in range(more * clips, more * (clips + 3) + 1, more):
        if ranks <= min(MOST_RANKS, run.config.frames) and _fits(run.changed(ranks=ranks), room):
            return ranks
    return None


def largest_size(run: Outline, room: Room) -> str | None:
    """A size of the same shape near the largest that fits, in whole blocks of the UNet's coarsest level."""
    assert run.config.pixels is not None
    width, height = run.config.pixels
    block = run.card.pixels * 2 ** (len(run.unet.block_out_channels) - 1)
    high = max(width, height) // block
    low = 0
    best = None
    while high - low > 1:  # the area goes with the square, so that few tries are enough
        middle = (low + high) // 2
        scale = middle * block / max(width, height)
        sides = [max(block, round(side * scale / block) * block) for side in (width, height)]
        if min(sides) < SMALLEST_SIDE:
            low = middle
            continue
        size = f"{sides[0]}x{sides[1]}"
        if size != run.config.size and _fits(run.changed(size=size), room):
            best, low = size, middle
        else:
            high = middle
    return best


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
