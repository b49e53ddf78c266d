"""The memory behind tensors: where it is, who used it last, and whether these uses are ordered."""

import sys
import weakref
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from oracles.pretend.clocks import HOST, Clocks
from torch import Tensor

import vinfinity

PACKAGE = str(Path(vinfinity.__file__).parent) + "/"


def call_stack() -> tuple[str, ...]:
    """Return the functions of the package that are running, such as `denoise/loop.py:denoise`, outermost first."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            names.append(f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(names[::-1])


def call_site() -> str:
    """Return the innermost line of the package that is running, such as `models/offload.py:107 keep`."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            return f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside the package"


def key_of(tensor: Tensor) -> int:
    """Identify the memory of a CPU tensor; views share it."""
    return tensor.untyped_storage()._cdata


def extent_of(tensor: Tensor) -> tuple[int, int]:
    """Return the bytes of its memory, from the first up to the last, between which a tensor lies."""
    start = int(tensor.storage_offset()) * tensor.itemsize
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (span + 1) * tensor.itemsize


def power_of_two(size: int) -> int:
    """Return what torch's allocator of pinned memory takes for `size` bytes (c10's CachingHostAllocator)."""
    return 1 << max(0, size - 1).bit_length()


@dataclass(frozen=True)
class Access:
    """An operation's use of some bytes of a block."""

    actor: str
    number: int
    write: bool
    extent: tuple[int, int]
    what: str

    def overlaps(self, extent: tuple[int, int]) -> bool:
        return self.extent[0] < extent[1] and extent[0] < self.extent[1]

    def within(self, extent: tuple[int, int]) -> bool:
        return extent[0] <= self.extent[0] and self.extent[1] <= extent[1]


@dataclass
class Block:
    """A piece of memory.

    home: the stream that it was allocated on, to which the allocator returns it; the host for pinned memory. device:
    its index; None for pinned memory. accesses: the last ones that later accesses must be ordered behind. recorded:
    streams for which the allocator waits (`record_stream`).
    """

    home: str
    device: int | None
    size: int
    references: int = 0
    accesses: list[Access] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)


class Memory:
    """The memory of all pretend devices, and pinned memory of the host.

    races: pairs of accesses, at least one of which writes, that no event or wait orders. early_frees: memory that was
    given back while another stream might still use it. allocated, peak: bytes on each device. pinned: bytes of pinned
    memory in use, as torch's allocator rounds them.

    limit: bytes that each device has; to allocate more raises torch's OutOfMemoryError. pinnable: bytes of the host
    that can be pinned; to pin more raises RuntimeError.
    """

    def __init__(self, clocks: Clocks, *, limit: int, pinnable: float) -> None:
        self._clocks, self._limit, self._pinnable = clocks, limit, pinnable
        self._blocks: dict[int, Block] = {}
        self.races: Counter[str] = Counter()
        self.early_frees: Counter[str] = Counter()
        self.allocated: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()
        self.pinned = 0

    # ---- allocating and freeing ----

    def watch(self, tensor: Tensor, *, home: str, device: int | None) -> None:
        """Count a reference to the tensor's memory, which is new unless it is known already."""
        key = key_of(tensor)
        block = self._blocks.get(key)
        if block is None:
            block = Block(home, device, tensor.untyped_storage().nbytes())
            self._take(block)
            self._blocks[key] = block
            if device is not None:
                # whatever had this memory before is done when the stream gets here
                self._record(block, home, (0, block.size), write=True, what="allocation")
        block.references += 1
        weakref.finalize(tensor, self._release, key).atexit = False

    def _take(self, block: Block) -> None:
        if block.device is None:
            if self.pinned + power_of_two(block.size) > self._pinnable:
                raise RuntimeError("CUDA error: out of memory")
            self.pinned += power_of_two(block.size)
            return
        free = self._limit - self.allocated[block.device]
        if block.size > free:
            needed, total, rest = (f"{size / 2**20:.2f} MiB" for size in (block.size, self._limit, free))
            raise torch.cuda.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {needed}. GPU {block.device} has a total capacity of {total}"
                f" of which {rest} is free."
            )
        self.allocated[block.device] += block.size
        self.peak[block.device] = max(self.peak[block.device], self.allocated[block.device])

    def _release(self, key: int) -> None:
        block = self._blocks[key]
        block.references -= 1
        if block.references:
            return
        del self._blocks[key]
        if block.device is None:
            # torch's allocator of pinned memory waits for copies by itself
            self.pinned -= power_of_two(block.size)
            return
        self.allocated[block.device] -= block.size
        for access in block.accesses:
            safe = access.actor in (block.home, HOST) or access.actor in block.recorded
            if not safe and not self._clocks.knows(block.home, access.actor, access.number):
                self.early_frees[f"memory of {block.home} is given back before {access.what}"] += 1

    # ---- using ----

    def is_pinned(self, tensor: Tensor) -> bool:
        block = self._blocks.get(key_of(tensor))
        return block is not None and block.device is None

    def known(self, tensor: Tensor) -> bool:
        """Whether the tensor's memory is on a device or pinned."""
        return key_of(tensor) in self._blocks

    def use(self, tensor: Tensor, actor: str, *, write: bool, operation: str) -> None:
        """Return an actor reads or writes a tensor; memory that is neither pinned nor on a device does not matter."""
        block = self._blocks.get(key_of(tensor))
        if block is not None and tensor.numel():
            self._record(block, actor, extent_of(tensor), write=write, what=operation)

    def record_stream(self, tensor: Tensor, stream: str) -> None:
        self._blocks[key_of(tensor)].recorded.add(stream)

    def _record(self, block: Block, actor: str, extent: tuple[int, int], *, write: bool, what: str) -> None:
        number = self._clocks.tick(actor)
        verb = "writes" if write else "reads"
        access = Access(actor, number, write, extent, f"{what} {verb} on {actor} ({call_site()})")
        kept = []
        for earlier in block.accesses:
            conflict = (write or earlier.write) and earlier.actor != actor and earlier.overlaps(extent)
            if conflict and not self._clocks.knows(actor, earlier.actor, earlier.number):
                self.races[f"{access.what}, not ordered behind: {earlier.what}"] += 1
            # whoever is ordered behind this access is ordered behind those that it replaces
            same = earlier.actor == actor and (write or not earlier.write)
            if not (earlier.within(extent) and (write or same)):
                kept.append(earlier)
        block.accesses = [*kept, access]
