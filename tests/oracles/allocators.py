"""Models of PyTorch's caching allocator on a GPU, and the memory events of a denoising step to run them on.

After c10/cuda/CUDACachingAllocator.cpp of torch 2.13, on one stream: sizes, pools, best fit, splitting and merging,
with and without expandable segments. A capacity takes the place of the GPU's memory.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from vinfinity.denoise.execution import Execution
from vinfinity.denoise.guidance import guide
from vinfinity.denoise.state import Sampler, State
from vinfinity.planning.meter import LiveBytes
from vinfinity.planning.trace import TIMESTEP, CallShape, network_call

MIB = 2**20
# of CUDACachingAllocator.h: sizes are multiples of the first; allocations up to the second share small segments
ROUND, SMALL = 512, MIB
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
# larger allocations have a segment of their own, in multiples of the second
LARGE, ROUND_LARGE = 10 * MIB, 2 * MIB


@dataclass(frozen=True)
class Event:
    """A block of memory that is allocated, or with size 0 freed."""

    key: int
    size: int


class OutOfCapacity(Exception):
    """The allocator cannot serve a request within its capacity."""


class Allocator(Protocol):
    """peak: the most bytes that were reserved at once. flushes: how often it had to give back its cache."""

    peak: int
    flushes: int

    def allocate(self, key: int, size: int) -> None: ...
    def free(self, key: int) -> None: ...


# ---- the native allocator ----


@dataclass(eq=False)
class Block:
    """A part of a segment. before, after: its neighbours there. freed: when it was last freed, as a counter."""

    size: int
    small: bool
    free: bool = False
    freed: int = 0
    before: "Block | None" = None
    after: "Block | None" = None


class SegmentAllocator:
    """Without expandable segments: each segment is a cudaMalloc of its own, and never grows."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.reserved, self.peak, self.flushes = capacity, 0, 0, 0
        # ascending by size, then by the time they were freed
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._used: dict[int, Block] = {}
        self._clock = 0

    def allocate(self, key: int, size: int) -> None:
        size = -(-size // ROUND) * ROUND
        small = size <= SMALL
        pool = self._free[small]
        index = bisect.bisect_left(pool, (size, -1))
        block = pool.pop(index)[2] if index < len(pool) else self._segment(size, small)
        rest = block.size - size
        if rest >= ROUND if small else rest > SMALL:
            remainder = Block(rest, small, before=block, after=block.after)
            if block.after is not None:
                block.after.before = remainder
            block.size, block.after = size, remainder
            self._put(remainder)
        block.free = False
        self._used[key] = block

    def free(self, key: int) -> None:
        block = self._used.pop(key)
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._take(neighbour)
                block.size += neighbour.size
                if neighbour is block.before:
                    block.before = neighbour.before
                    if block.before is not None:
                        block.before.after = block
                else:
                    block.after = neighbour.after
                    if block.after is not None:
                        block.after.before = block
        self._put(block)

    def _segment(self, size: int, small: bool) -> Block:
        shared = SMALL_SEGMENT if small else LARGE_SEGMENT
        wanted = shared if size < LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE
        if self.reserved + wanted > self.capacity:
            self.flushes += 1
            self._flush()
        if self.reserved + wanted > self.capacity:
            raise OutOfCapacity(f"{size:,} bytes wanted, {self.reserved:,} of {self.capacity:,.0f} reserved")
        self.reserved += wanted
        self.peak = max(self.peak, self.reserved)
        return Block(wanted, small)

    def _flush(self) -> None:
        """Give back the segments that are not used at all."""
        for pool in self._free.values():
            for _, _, block in list(pool):
                if block.before is None and block.after is None:
                    self._take(block)
                    self.reserved -= block.size

    def _put(self, block: Block) -> None:
        self._clock += 1
        block.free, block.freed = True, self._clock
        bisect.insort(self._free[block.small], (block.size, block.freed, block))

    def _take(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect.bisect_left(pool, (block.size, block.freed))]
        block.free = False


# ---- expandable segments ----


@dataclass
class Extent:
    """Addresses of an expandable segment. state: in use, mapped but free, or without memory behind it."""

    start: int
    size: int
    state: Literal["used", "free", "unmapped"]

    @property
    def stop(self) -> int:
        return self.start + self.size


class _Expandable:
    """One expandable segment, which memory is mapped into a page at a time. extents: all addresses, in order."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.extents = [Extent(0, 2**60, "unmapped")]

    def find(self, size: int) -> int | None:
        """Return the smallest free extent for `size` bytes."""
        fitting = [
            (extent.size, extent.start, index)
            for index, extent in enumerate(self.extents)
            if extent.state == "free" and extent.size >= size
        ]
        return min(fitting)[2] if fitting else None

    def find_unmapped(self, size: int) -> tuple[int, int]:
        """Return the lowest addresses, partly without memory, for `size` bytes: the index of their first extent, and
        the bytes that must be mapped.
        """
        for index, extent in enumerate(self.extents):
            if extent.state != "unmapped":
                continue
            first = index - 1 if index and self.extents[index - 1].state == "free" else index
            start, last = self.extents[first].start, first
            while last + 1 < len(self.extents) and self.extents[last + 1].state != "used":
                last += 1
            if self.extents[last].stop - start >= size:
                stop = start + size
                missing = 0
                for part in self.extents[first : last + 1]:
                    if part.state == "unmapped" and part.start < stop:
                        end = min(part.stop, -(-stop // self.page) * self.page)
                        missing += end - part.start
                return first, missing
        raise AssertionError("addresses never run out")

    def map(self, first: int, size: int) -> None:
        """Map all pages of `size` bytes from the start of an extent."""
        stop = -(-(self.extents[first].start + size) // self.page) * self.page
        index = first
        while index < len(self.extents) and self.extents[index].start < stop:
            extent = self.extents[index]
            if extent.state == "unmapped":
                if extent.stop > stop:
                    self.extents.insert(index + 1, Extent(stop, extent.stop - stop, "unmapped"))
                    extent.size = stop - extent.start
                extent.state = "free"
            index += 1
        self.merge()

    def unmap(self) -> int:
        """Take away all pages that are not used. Returns their bytes."""
        released, extents = 0, []
        for extent in self.extents:
            start = -(-extent.start // self.page) * self.page
            stop = extent.stop // self.page * self.page
            if extent.state != "free" or stop <= start:
                extents.append(extent)
                continue
            released += stop - start
            for begin, end, state in (
                (extent.start, start, "free"),
                (start, stop, "unmapped"),
                (stop, extent.stop, "free"),
            ):
                if end > begin:
                    extents.append(Extent(begin, end - begin, state))  # type: ignore[arg-type]
        self.extents = extents
        self.merge()
        return released

    def use(self, index: int, size: int) -> int:
        """Use the start of a free extent. Returns its address."""
        extent = self.extents[index]
        if extent.size > size:
            self.extents.insert(index + 1, Extent(extent.start + size, extent.size - size, "free"))
            extent.size = size
        extent.state = "used"
        return extent.start

    def release(self, address: int) -> None:
        """Free the extent at an address."""
        index = bisect.bisect_left(self.extents, address, key=lambda extent: extent.start)
        self.extents[index].state = "free"
        self.merge()

    def merge(self) -> None:
        """Merge neighbours that are both free, or both without memory."""
        merged: list[Extent] = []
        for extent in self.extents:
            if merged and extent.state != "used" and merged[-1].state == extent.state:
                merged[-1].size += extent.size
            else:
                merged.append(extent)
        self.extents = merged


class ExpandableAllocator:
    """With expandable segments: one for small and one for large allocations."""

    def __init__(self, capacity: float) -> None:
        self.capacity, self.reserved, self.peak, self.flushes = capacity, 0, 0, 0
        self._segments = {True: _Expandable(SMALL_SEGMENT), False: _Expandable(LARGE_SEGMENT)}
        self._used: dict[int, tuple[bool, int]] = {}

    def allocate(self, key: int, size: int) -> None:
        size = -(-size // ROUND) * ROUND
        small = size <= SMALL
        segment = self._segments[small]
        index = segment.find(size)
        if index is None:
            index, missing = segment.find_unmapped(size)
            if self.reserved + missing > self.capacity:
                self.flushes += 1
                self.reserved -= sum(each.unmap() for each in self._segments.values())
                index, missing = segment.find_unmapped(size)
            if self.reserved + missing > self.capacity:
                raise OutOfCapacity(
                    f"{size:,} bytes wanted, {self.reserved:,} of {self.capacity:,.0f} reserved"
                )
            start = segment.extents[index].start
            segment.map(index, size)
            self.reserved += missing
            self.peak = max(self.peak, self.reserved)
            index = bisect.bisect_left(segment.extents, start, key=lambda extent: extent.start)
        self._used[key] = small, segment.use(index, size)

    def free(self, key: int) -> None:
        small, address = self._used.pop(key)
        self._segments[small].release(address)


# ---- what they run on ----


class AllocationLog(LiveBytes):
    """Records the blocks of memory on the device that are allocated and freed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._numbers: dict[int, int] = {}

    def allocated(self, key: int, size: int, *, on_device: bool) -> None:
        super().allocated(key, size, on_device=on_device)
        if on_device and size:
            self._numbers[key] = len(self.events)
            self.events.append(Event(len(self.events), size))

    def freed(self, key: int, size: int, *, on_device: bool) -> None:
        super().freed(key, size, on_device=on_device)
        if on_device and size:
            self.events.append(Event(self._numbers.pop(key), 0))


@dataclass(frozen=True)
class StepEvents:
    """The memory events of a denoising step. weights: sizes of the parameters, which stay. peak: the most bytes of
    tensors, weights included.
    """

    weights: Sequence[int]
    events: Sequence[Event]
    peak: int


@torch.inference_mode()
def step_events(
    shape: CallShape, execution: Execution, sampler: Sampler, *, branches: int, few_pieces: bool
) -> StepEvents:
    """Trace one denoising step: the calls of all guidance branches, and the sampler. few_pieces: see `network_call`."""
    call = network_call(shape, execution, shape.traced_exchange(), few_pieces=few_pieces)

    def latents() -> torch.Tensor:
        return torch.empty(shape.latents, device="meta")

    with AllocationLog() as log:
        state = State(step=1, x=latents(), clean=latents())
        predictions = torch.cat([call(state.x, TIMESTEP) for _ in range(branches // execution.branches)])
        state = sampler.step(state, guide(predictions.float(), 2.0), lambda step: latents())
        del predictions
    weights = [parameter.nbytes for parameter in call.network.parameters()]
    return StepEvents(weights, tuple(log.events), log.peak + sum(weights))


def replay(step: StepEvents, allocator: Allocator, *, steps: int = 2) -> None:
    """Load the weights and carry out a step several times. Raises OutOfCapacity."""
    for index, size in enumerate(step.weights):
        # events have keys from 0 on
        allocator.allocate(-1 - index, size)
    for _ in range(steps):
        alive = set()
        for event in step.events:
            if event.size:
                allocator.allocate(event.key, event.size)
                alive.add(event.key)
            else:
                allocator.free(event.key)
                alive.discard(event.key)
        for left in alive:
            allocator.free(left)
