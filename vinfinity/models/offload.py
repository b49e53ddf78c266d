"""Stores for hidden states that wait to be used: skip connections, and deep features reused over several steps.

Dims: b batch, f frames, h w height and width, c channels. States are (b, f, h, w, c).
A store on the device keeps references. A store in host memory copies states there while the downward half of the UNet
runs, and brings them back one chunk of frames at a time, each while the previous chunk is being used.
"""

import contextlib
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from vinfinity.system.transfer import pinned

# Host memory is allocated in pieces whose size is a power of two, since torch rounds pinned memory up to one, and used
# in blocks.
PINNED_BYTES = 16 * 2**20
BLOCK_BYTES = 2 * 2**20


class Frames(Protocol):
    """Hidden states that are read in chunks of frames."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, frames: slice, *, then: slice | None = None) -> Tensor:
        """Return frames (b, f', h, w, c) on the device. then: the frames to read next, which are fetched meanwhile."""
        ...


class Store(Protocol):
    """Stores hidden states."""

    def keep(self, x: Tensor) -> Frames:
        """Store x (b, f, h, w, c), which the caller must not change afterwards."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """States that stay on the device."""

    x: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def read(self, frames: slice, *, then: slice | None = None) -> Tensor:
        return self.x if frames == slice(None) else self.x[:, frames]


class DeviceStore:
    """Leaves states where they are."""

    def keep(self, x: Tensor) -> Frames:
        return OnDevice(x)


class Stream(Protocol):
    """The part of torch.cuda.Stream that a store uses."""

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def record_event(self) -> Any: ...


class NoStream:
    """Stand-in for CUDA streams on devices that execute synchronously."""

    def wait_event(self, event: Any) -> None:
        """Return at once: the event has already happened."""

    def wait_stream(self, stream: Any) -> None:
        """Return at once: the stream is idle."""

    def record_event(self) -> Any:
        return None


NO_STREAM = NoStream()


@dataclass
class Arrivals:
    """A buffer on the device that receives one chunk at a time.

    buffer: the memory, as bytes. free: the event after which it may be overwritten. arrived: the event after which the
    chunk is complete. reader: the states that the chunk belongs to; None once the chunk has been taken.
    """

    buffer: Tensor
    free: Any
    arrived: Any = None
    reader: "weakref.ref[_OnHost] | None" = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the chunk."""
        return self.reader is None or self.reader() is None


@dataclass(eq=False)
class _OnHost:
    """States in blocks of host memory. next: the chunk that is fetched in advance, and the buffer that receives it."""

    store: "HostStore"
    blocks: list[Tensor]
    shape: torch.Size
    dtype: torch.dtype
    next: tuple[slice, Arrivals] | None = None

    def read(self, frames: slice, *, then: slice | None = None) -> Tensor:
        expected, arrivals = self.next or (frames, None)
        if arrivals is not None and expected != frames:
            arrivals.reader = None
            arrivals = None
        x = self.store.take(self, frames, arrivals or self.store.fetch(self, frames))
        self.next = None if then is None else (then, self.store.fetch(self, then))
        return x


class HostStore:
    """Stores states in host memory, pinned if the device is a GPU.

    Copies run on a separate CUDA stream, and the host never waits for them. Each stream waits for the other before it
    overwrites memory that the other still needs. So memory is reused at once, and the store's size does not depend on
    how far the host runs ahead of the device. (With `Tensor.record_stream`, the allocator would hold memory back until
    the host sees that the device is done with it.)
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copying: Stream = torch.cuda.Stream(device) if device.type == "cuda" else NO_STREAM
        self._free_blocks: list[Tensor] = []
        self._arrivals: list[Arrivals] = []

    def keep(self, x: Tensor) -> Frames:
        x, computing = x.contiguous(), self._computing()
        # dropped here, so that a trace of one call counts the buffers from the first chunk on
        self._drop_idle_arrivals()
        parts = _bytes(x).split(BLOCK_BYTES)
        blocks = [self._free_block() for _ in parts]
        self._copying.wait_stream(computing)
        with self._copies():
            for block, part in zip(blocks, parts, strict=True):
                block[: len(part)].copy_(part, non_blocking=True)
            copied = self._copying.record_event()
        # once x is dropped, the next operation may overwrite its memory: it must wait for the copy
        weakref.finalize(x, computing.wait_event, copied).atexit = False
        states = _OnHost(self, blocks, x.shape, x.dtype)
        weakref.finalize(states, self._free_blocks.extend, blocks).atexit = False
        return states

    def fetch(self, states: _OnHost, frames: slice) -> Arrivals:
        """Start to copy frames to the device, and return the buffer that receives them."""
        b, f, *rest = states.shape
        frame = math.prod(rest) * states.dtype.itemsize
        size = (frames.stop - frames.start) * frame
        arrivals = self._free_arrivals(b * size)
        arrivals.reader = weakref.ref(states)
        self._copying.wait_event(arrivals.free)
        with self._copies():
            for branch, target in enumerate(arrivals.buffer[: b * size].split(size)):
                for part, source in _pieces(target, states.blocks, start=(branch * f + frames.start) * frame):
                    part.copy_(source, non_blocking=True)
            arrivals.arrived = self._copying.record_event()
        return arrivals

    def take(self, states: _OnHost, frames: slice, arrivals: Arrivals) -> Tensor:
        """Copy the fetched frames out of the buffer, so that the next chunk can arrive."""
        computing = self._computing()
        shape = (states.shape[0], frames.stop - frames.start, *states.shape[2:])
        computing.wait_event(arrivals.arrived)
        x = arrivals.buffer[: math.prod(shape) * states.dtype.itemsize].view(states.dtype).view(shape).clone()
        arrivals.free, arrivals.reader = computing.record_event(), None
        return x

    def _computing(self) -> Stream:
        """Return the stream on which the network computes."""
        return NO_STREAM if self._copying is NO_STREAM else torch.cuda.current_stream(self.device)

    def _copies(self) -> contextlib.AbstractContextManager[object]:
        """Make the copy stream the current one."""
        if self._copying is NO_STREAM:
            return contextlib.nullcontext()
        return torch.cuda.stream(cast(torch.cuda.Stream, self._copying))

    def _free_block(self) -> Tensor:
        """Return a block of host memory. Its last use may be in flight, but its next use is on the same stream."""
        if not self._free_blocks:
            make = partial(torch.empty, PINNED_BYTES, dtype=torch.uint8)
            piece = pinned(make) if self.device.type == "cuda" else make()
            self._free_blocks.extend(piece.split(BLOCK_BYTES))
        return self._free_blocks.pop()

    def _free_arrivals(self, size: int) -> Arrivals:
        """Return an idle buffer on the device, of at least `size` bytes."""
        for arrivals in self._arrivals:
            if arrivals.idle and len(arrivals.buffer) >= size:
                return arrivals
        self._drop_idle_arrivals()
        buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        # its memory may have belonged to a tensor that the network has only just released
        self._arrivals.append(Arrivals(buffer, free=self._computing().record_event()))
        return self._arrivals[-1]

    def _drop_idle_arrivals(self) -> None:
        """Release the idle buffers."""
        for arrivals in [arrivals for arrivals in self._arrivals if arrivals.idle]:
            # a chunk that was never taken may still be on its way
            self._computing().wait_event(arrivals.arrived)
            self._arrivals.remove(arrivals)


def _bytes(x: Tensor) -> Tensor:
    """View a contiguous tensor as bytes."""
    return x.view(-1).view(torch.uint8)


def _pieces(target: Tensor, blocks: Sequence[Tensor], *, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair consecutive parts of `target` (bytes) with the parts of blocks that fill them, from byte `start` on."""
    done = 0
    while done < len(target):
        block, offset = divmod(start + done, BLOCK_BYTES)
        size = min(BLOCK_BYTES - offset, len(target) - done)
        yield target[done : done + size], blocks[block][offset : offset + size]
        done += size


def store_for(skips: Literal["device", "host"], device: torch.device) -> Store:
    """Make the store that keeps the hidden states of `device` there, or in host memory."""
    return HostStore(device) if skips == "host" else DeviceStore()
