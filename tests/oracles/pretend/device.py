"""CUDA devices that are not there: tensors that say they are on cuda:N, but compute on the CPU.

The package runs on them unchanged. They find what would go wrong on real devices, though not on a CPU:

- operations on tensors of different devices, and pickled device tensors: these raise `PretendError`;
- each time that the host waits for a device (`Findings.waits`);
- each copy between host and device that is not from or to pinned memory with non_blocking=True, or that torch would
  make through memory that is not pinned, since type or layout differ (`Findings.slow_copies`);
- two streams, or a stream and the host, that use the same memory unordered (`Findings.races`);
- memory that is freed while a stream other than its own may still use it (`Findings.early_frees`);
- threads that ask for an event of another device than their current one, which is the first one in a new thread: a real
  driver would create a context there (`Findings.contexts`);
- counts of memory that are reset before anything has initialised CUDA: these raise RuntimeError, as in torch;
- expandable segments where the driver lacks virtual memory, if it is told to: each allocation raises RuntimeError;
- more memory than a device has: torch's OutOfMemoryError; more pinned memory than the driver allows: RuntimeError.

Operations run at once, in the order in which the host starts them. So results are right even where streams race: races
are found by vector clocks (clocks.py), not by wrong results. What cannot be tested this way: numerics of CUDA kernels,
time, and the driver.
"""

import contextlib
import math
import os
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from oracles.pretend.clocks import HOST, Clock, Clocks
from oracles.pretend.memory import Memory, call_site, call_stack, key_of
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

GIB = 2**30
# operations whose result the host must know before it goes on
READ_BACK = {"item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "masked_select"}
READ_BACK |= {"unique", "_unique2", "unique_consecutive", "bincount", "tolist"}
CONVERSIONS = {"to", "_to_copy"}
# operations that copy indices from the host if they must
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class PretendError(AssertionError):
    """What a real device would refuse."""


@dataclass(frozen=True)
class Wait:
    """The host waited for a device. kind: by which operation. stack: functions of the package, outermost first."""

    kind: str
    site: str
    stack: tuple[str, ...]


@dataclass(frozen=True)
class SlowCopy:
    """A copy that is not asynchronous. kind: why not."""

    kind: str
    shape: tuple[int, ...]
    site: str
    stack: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What pretend devices have found. races, early_frees: see `Memory`. contexts: places that would create one."""

    races: Sequence[str]
    early_frees: Sequence[str]
    waits: Sequence[Wait]
    slow_copies: Sequence[SlowCopy]
    contexts: Sequence[str]

    def waits_in(self, function: str) -> list[Wait]:
        """Return the waits inside a function, such as `denoise/loop.py:denoise`."""
        return [wait for wait in self.waits if function in wait.stack]

    def slow_copies_in(self, function: str) -> list[SlowCopy]:
        """Return the copies inside a function that are not asynchronous."""
        return [copy for copy in self.slow_copies if function in copy.stack]


class PretendTensor(torch.Tensor):
    """A tensor on a pretend device. elem: its data, on the CPU."""

    elem: Tensor
    place: torch.device

    def __new__(cls, elem: Tensor, place: torch.device) -> "PretendTensor":
        # torch makes no views of inference tensors of other classes than its own
        with torch.inference_mode(False):
            made: PretendTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                elem.size(),
                strides=elem.stride(),
                storage_offset=elem.storage_offset(),
                dtype=elem.dtype,
                device=torch.device("meta"),
                requires_grad=False,
            )
        made.elem, made.place = elem, place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def values(self) -> Tensor:
        """Return a copy of the data, behind the device's back: it has been computed already."""
        with _disable_current_modes():
            return self.elem.clone()

    def get_device(self) -> int:
        return self.place.index

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype}, {self.place})"

    def __reduce_ex__(self, protocol: object) -> Any:
        raise PretendError(f"a tensor of {self.place} is pickled; another process would find it there, too")

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # without autograd, composite operations arrive whole; their parts would see a meta tensor
        with torch._C.DisableTorchFunctionSubclass(), torch._C._AutoDispatchBelowAutograd():
            if func is torch._has_compatible_shallow_copy_type:
                # a module that is moved gets new parameters
                return False
            if func is torch.Tensor.__setitem__ and not isinstance(args[2], Tensor):
                # torch would make a tensor of the number on the device that it sees
                return args[0][args[1]].fill_(args[2])
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return PretendCuda.active().run(func, tuple(args), dict(kwargs or {}))


class _Mode(TorchDispatchMode):
    """Hands every operation to the pretend devices, those on CPU tensors included."""

    def __init__(self, cuda: "PretendCuda") -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return self._cuda.run(func, tuple(args), dict(kwargs or {}))


class Stream:
    """torch.cuda.Stream."""

    _made = 0

    def __init__(self, device: Any = None, priority: int = 0, *, name: str | None = None) -> None:
        self._cuda = PretendCuda.active()
        self._cuda.initialize()
        self.device = self._cuda.place(device)
        if name is None:
            Stream._made += 1
            name = f"stream {Stream._made} of {self.device}"
        self.name = name

    def wait_event(self, event: "Event") -> None:
        self._cuda.clocks.join(self.name, event.seen)

    def wait_stream(self, stream: "Stream") -> None:
        self._cuda.clocks.join(self.name, self._cuda.clocks.now(stream.name))

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        self._cuda.wait("stream.synchronize", self._cuda.clocks.now(self.name))

    def query(self) -> bool:
        return True

    def __enter__(self) -> "Stream":
        self._cuda.enter_stream(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._cuda.leave_stream()


class Event:
    """torch.cuda.Event. seen: what is done once the event is; nothing if it was never recorded."""

    def __init__(self, *_: object, **__: object) -> None:
        self._cuda = PretendCuda.active()
        self._cuda.initialize()
        self.seen: Clock = {}
        self.device: torch.device | None = None
        self._asked_at: int | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._cuda.stream()
        name, self.device = stream.name, stream.device
        self._cuda.clocks.join(name, self._cuda.clocks.now(HOST))
        self.seen = self._cuda.clocks.now(name)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._cuda.stream()).wait_event(self)

    def synchronize(self) -> None:
        self._cuda.look_at(self)
        self._cuda.wait("event.synchronize", self.seen)

    def query(self) -> bool:
        """Whether the host has waited for the event. Where it has not, asking again and again is a wait: the answer is
        True if nothing else was done since it was last asked for.
        """
        cuda = self._cuda
        cuda.look_at(self)
        if all(cuda.clocks.knows(HOST, actor, number) for actor, number in self.seen.items()):
            return True
        if threading.current_thread() is not threading.main_thread():
            return False
        again, self._asked_at = self._asked_at == cuda.operations, cuda.operations
        if again:
            cuda.wait("event.query", self.seen)
        return again


class PretendCuda:
    """Some pretend devices, in place of torch.cuda while the context is open.

    virtual_memory: whether the driver has what expandable segments need. capability: compute capability. pinnable:
    bytes of the host's memory that the driver pins at most.
    """

    _active: "PretendCuda | None" = None

    def __init__(
        self,
        *,
        devices: int = 2,
        memory: int = 24 * GIB,
        virtual_memory: bool = True,
        capability: tuple[int, int] = (8, 0),
        pinnable: float = math.inf,
    ) -> None:
        self.devices, self.total, self._virtual_memory = devices, memory, virtual_memory
        self._capability = capability
        # those of the allocator, once they were changed by a call
        self._settings: str | None = None
        self.clocks = Clocks()
        self.memory = Memory(self.clocks, limit=memory, pinnable=pinnable)
        self.operations = 0
        self.waits: list[Wait] = []
        self.slow_copies: list[SlowCopy] = []
        self.contexts: list[str] = []
        self._initialized = False
        self._sync_debug = 0
        self._current = threading.local()
        self._streams: list[tuple[Stream, int]] = []
        self._open = contextlib.ExitStack()

    def findings(self) -> Findings:
        """All that was found until now."""
        memory = self.memory
        return Findings(
            races=list(memory.races),
            early_frees=list(memory.early_frees),
            waits=list(self.waits),
            slow_copies=list(self.slow_copies),
            contexts=list(self.contexts),
        )

    @staticmethod
    def active() -> "PretendCuda":
        """Return the pretend devices whose context is open."""
        assert PretendCuda._active is not None, "no pretend device is active"
        return PretendCuda._active

    # ---- places, streams, waits ----

    def initialize(self) -> None:
        """Return what most functions of torch.cuda do at their first call, in place of torch.cuda._lazy_init."""
        self._initialized = True

    @property
    def _device(self) -> int:
        """The current device of this thread: the first one until it chooses another."""
        return getattr(self._current, "device", 0)

    @_device.setter
    def _device(self, index: int) -> None:
        self._current.device = index

    def look_at(self, event: Event) -> None:
        """Return a thread asks for an event, which the driver does in the context of the thread's current device."""
        if event.device is not None and event.device.index != self._device:
            self.contexts.append(call_site())

    def place(self, device: Any) -> torch.device:
        """Return a CUDA device with its index; the current device if there is none."""
        if isinstance(device, int):
            return torch.device("cuda", device)
        found = torch.device("cuda" if device is None else device)
        assert found.type == "cuda"
        index = self._device if found.index is None else found.index
        if index >= self.devices:
            raise PretendError(f"there is no device {index}")
        return torch.device("cuda", index)

    def _with_index(self, value: Any) -> Any:
        """Return a CUDA device without an index as the current device; anything else as it is."""
        named = isinstance(value, str) or (isinstance(value, torch.device) and value.index is None)
        return self.place(value) if named and torch.device(value).type == "cuda" else value

    def stream(self, device: Any = None) -> Stream:
        """Return the current stream of a device."""
        self.initialize()
        place = self.place(device)
        for stream, _ in reversed(self._streams):
            if stream.device == place:
                return stream
        return Stream(place, name=f"the main stream of {place}")

    def enter_stream(self, stream: Stream) -> None:
        """Make a stream the current one of its device, and that the current device."""
        self._streams.append((stream, self._device))
        self._device = stream.device.index

    def leave_stream(self) -> None:
        """Undoes the last `enter_stream`."""
        _, self._device = self._streams.pop()

    def wait(self, kind: str, seen: Clock) -> None:
        """Return the host waits for what `seen` knows."""
        self.waits.append(Wait(kind, call_site(), call_stack()))
        self.clocks.join(HOST, seen)

    def _synchronizing(self, kind: str, stream: str) -> None:
        """Return the host waits for a stream because of an operation."""
        if self._sync_debug == 2:
            raise RuntimeError(f"called a synchronizing CUDA operation: {kind} ({call_site()})")
        self.wait(kind, self.clocks.now(stream))

    # ---- operations ----

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return an operation, on pretend devices or on the CPU."""
        self.operations += 1
        name, names, changed = _signature(func)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        written = _tensors(*[given[argument] for argument in changed if argument in given])
        tensors = _tensors(args, kwargs)
        here = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        wanted = given.get("device")
        if here and wanted is not None and torch.device(wanted).type == "meta":
            # what torch takes for the device of pretend tensors
            wanted = given["device"] = here[0].place
        to_cuda = wanted is not None and torch.device(wanted).type == "cuda"
        if not here and not to_cuda:
            return self._on_host(func, name, args, kwargs, tensors, written)
        if name == "copy_":
            return self._copy_into(given)
        if name in CONVERSIONS:
            source = given["self"]
            target = given["other"].device if "other" in given else wanted
            if target is not None and not self._same_place(source, target):
                return self._moved(source, target, given)
        if name == "pin_memory":
            raise PretendError("only memory of the host can be pinned")
        return self._compute(func, name, args, kwargs, given, tensors, written)

    def _same_place(self, source: Tensor, target: torch.device) -> bool:
        if torch.device(target).type != "cuda":
            return source.device.type == torch.device(target).type
        return source.device == self.place(target)

    def _on_host(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor],
        written: Sequence[Tensor],
    ) -> Any:
        """Return an operation without device tensors, which may use pinned memory."""
        pin = kwargs.pop("pin_memory", None)
        known = [tensor for tensor in tensors if tensor.device.type == "cpu" and self.memory.known(tensor)]
        out = func(*args, **kwargs)
        if known:
            made = _tensors(out)
            if written or not _is_view(made, tensors):
                for tensor in known:
                    write = any(tensor is other for other in written)
                    self.memory.use(tensor, HOST, write=write, operation=name)
            for tensor in made:
                if self.memory.known(tensor) and not any(tensor is other for other in tensors):
                    self.memory.watch(tensor, home=HOST, device=None)
        if pin:
            self.memory.watch(out, home=HOST, device=None)
        return out

    def _compute(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Mapping[str, Any],
        tensors: Sequence[Tensor],
        written: Sequence[Tensor],
    ) -> Any:
        """Return an operation on a device."""
        place = self._common_place(name, given, tensors)
        stream = self.stream(place).name
        indices = _indices(name, given)
        for index in indices:
            if not isinstance(index, PretendTensor) and index.dim():
                self._slow("indices that are not on the device", index, stream)
        plain_args, plain_kwargs = _mapped(_on_cpu, args), _mapped(_on_cpu, kwargs)
        plain_kwargs.pop("pin_memory", None)
        out = func(*plain_args, **plain_kwargs)
        made = _tensors(out)
        if written or not _is_view(made, [_plain(tensor) for tensor in tensors]):
            for tensor in tensors:
                actor = stream if isinstance(tensor, PretendTensor) else HOST
                write = any(tensor is other for other in written)
                self.memory.use(_plain(tensor), actor, write=write, operation=name)
        if name in READ_BACK or any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self._synchronizing(name, stream)

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            for tensor in tensors:
                if value is _plain(tensor):
                    return tensor
            return self._wrap(value, place, stream)

        return _mapped(wrapped, out)

    def _common_place(self, name: str, given: Mapping[str, Any], tensors: Sequence[Tensor]) -> torch.device:
        """Return the device on which an operation runs. Raises PretendError for tensors of different devices."""
        places = {tensor.place for tensor in tensors if isinstance(tensor, PretendTensor)}
        if given.get("device") is not None:
            places.add(self.place(given["device"]))
        # numbers as tensors of the CPU, and indices, may come from the host
        indices = {id(index) for index in _indices(name, given)}
        strangers = [
            tensor
            for tensor in tensors
            if not isinstance(tensor, PretendTensor) and tensor.dim() and id(tensor) not in indices
        ]
        if len(places) > 1 or strangers:
            found = sorted({str(tensor.device) for tensor in tensors})
            raise PretendError(f"{name} on tensors of different devices: {', '.join(found)} ({call_site()})")
        return places.pop()

    def _wrap(self, elem: Tensor, place: torch.device, stream: str) -> PretendTensor:
        settings = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") if self._settings is None else self._settings
        if not self._virtual_memory and "expandable_segments:True" in settings:
            raise RuntimeError("CUDA driver error: operation not supported")
        self.memory.watch(elem, home=stream, device=place.index)
        return PretendTensor(elem, place)

    # ---- copies ----

    def _moved(self, source: Tensor, target: torch.device, given: Mapping[str, Any]) -> Tensor:
        """`source.to(target)`, from another device or from the host."""
        target = torch.device(target)
        dtype = given["other"].dtype if "other" in given else given.get("dtype") or source.dtype
        layout = given.get("memory_format") or torch.preserve_format
        elem = torch.empty_like(_plain(source), dtype=dtype, memory_format=layout)
        moved: Tensor = elem
        if target.type == "cuda":
            place = self.place(target)
            moved = self._wrap(elem, place, self.stream(place).name)
        elif given.get("non_blocking"):
            # torch pins the result of such a copy
            self.memory.watch(elem, home=HOST, device=None)
        self._transfer(moved, source, non_blocking=bool(given.get("non_blocking")))
        return moved

    def _copy_into(self, given: Mapping[str, Any]) -> Tensor:
        """`target.copy_(source)`."""
        target, source = given["self"], given["src"]
        if source.device.type == "meta" or target.device.type == "meta":
            raise PretendError(f"copy_ between a tensor without data and {target.device} ({call_site()})")
        if source.device != target.device:
            self._transfer(target, source, non_blocking=bool(given.get("non_blocking")))
        else:
            name, stream = "copy_", self.stream(target.device).name
            self.memory.use(_plain(source), stream, write=False, operation=name)
            self.memory.use(_plain(target), stream, write=True, operation=name)
            _plain(target).copy_(_plain(source))
        return target

    def _transfer(self, target: Tensor, source: Tensor, *, non_blocking: bool) -> None:
        """Return a copy between a device and the host, or between two devices."""
        to, data = _plain(target), _plain(source)
        to.copy_(data)
        devices = [tensor.device for tensor in (target, source) if isinstance(tensor, PretendTensor)]
        streams = [self.stream(device).name for device in devices]
        for stream in streams[1:]:
            # between devices, each waits for the other
            self.clocks.join(streams[0], self.clocks.now(stream))
        self.memory.use(data, streams[-1], write=False, operation="copy")
        self.memory.use(to, streams[0], write=True, operation="copy")
        for stream in streams[1:]:
            self.clocks.join(stream, self.clocks.now(streams[0]))
        if len(devices) == 2:
            return
        on_host = source if isinstance(target, PretendTensor) else target
        # torch converts on the side that data comes from, and to a layout of its own choice
        direct = data.stride() == to.stride() and _is_dense(data)
        direct &= data.dtype == to.dtype or isinstance(source, PretendTensor)
        if not (self.memory.is_pinned(on_host) and direct):
            kind = "memory that is not pinned" if direct else "another type or layout"
            self._slow(
                kind, source, streams[0], waits=not (non_blocking and isinstance(target, PretendTensor))
            )
        elif not non_blocking:
            self._slow("a copy with non_blocking=False", source, streams[0])

    def _slow(self, kind: str, tensor: Tensor, stream: str, *, waits: bool = True) -> None:
        self.slow_copies.append(SlowCopy(kind, tuple(tensor.shape), call_site(), call_stack()))
        if waits:
            self._synchronizing(kind, stream)

    # ---- in place of torch.cuda ----

    def __enter__(self) -> "PretendCuda":
        assert PretendCuda._active is None
        PretendCuda._active = self
        # torch lists once which functions follow `with torch.device(...)`: that must not be the replacements
        _device_constructors()
        # a process that has not used its GPU yet may still configure the allocator
        self._open.enter_context(mock.patch.dict(os.environ))
        for owner, names in self._replacements().items():
            for name, value in names.items():
                # older versions of torch lack some of its inner functions
                patch = mock.patch.object(owner, name, value, create=owner is torch._C)
                self._open.enter_context(patch)
        self._open.enter_context(_Mode(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        PretendCuda._active = None

    def _replacements(self) -> Mapping[Any, Mapping[str, Any]]:
        real_tensor, real_numpy, real_to = torch.tensor, torch.Tensor.numpy, torch.Tensor.to

        def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            made = real_tensor(data, **options)
            return made if device is None else made.to(device)

        def to(x: Tensor, *args: Any, **options: Any) -> Tensor:
            # torch would ask the driver for the index of the current device
            options = {name: self._with_index(value) for name, value in options.items()}
            return real_to(x, *map(self._with_index, args), **options)

        def numpy(x: Tensor, **options: Any) -> Any:
            if isinstance(x, PretendTensor):
                raise PretendError(f"numpy cannot read a tensor of {x.device}")
            self.memory.use(x, HOST, write=False, operation="numpy")
            return real_numpy(x, **options)

        def pin_memory(x: Tensor, device: Any = None) -> Tensor:
            if self.memory.is_pinned(x):
                return x
            pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            return pinned.copy_(x)

        def record_stream(x: PretendTensor, stream: Stream) -> None:
            self.memory.record_stream(x.elem, stream.name)

        def set_sync_debug_mode(mode: int | str) -> None:
            self._sync_debug = mode if isinstance(mode, int) else ("default", "warn", "error").index(mode)

        def set_device(device: Any) -> None:
            self.initialize()
            self._device = self.place(device).index

        @contextlib.contextmanager
        def device_guard(device: Any) -> Iterator[None]:
            self.initialize()
            before, self._device = self._device, self.place(device).index
            try:
                yield
            finally:
                self._device = before

        def synchronize(device: Any = None) -> None:
            self.wait("synchronize", self.clocks.now(self.stream(device).name))

        def properties(device: Any = None) -> Any:
            self.initialize()
            index, (major, minor) = self.place(device).index, self._capability
            return types.SimpleNamespace(
                name="Pretend GPU", total_memory=self.total, major=major, minor=minor, uuid=f"pretend-{index}"
            )

        def mem_get_info(device: Any = None) -> tuple[int, int]:
            self.initialize()
            return self.total - allocated(device), self.total

        def allocated(device: Any = None) -> int:
            return self.memory.allocated[self.place(device).index]

        def peak(device: Any = None) -> int:
            return self.memory.peak[self.place(device).index]

        def known(device: Any) -> int:
            # torch does not initialise CUDA here, although it does almost everywhere else
            index = self.place(device).index
            if not self._initialized:
                raise RuntimeError(f"Invalid device argument {index}: did you call init?")
            return index

        def reset_peak(device: Any = None) -> None:
            index = known(device)
            self.memory.peak[index] = self.memory.allocated[index]

        def configure(settings: str) -> None:
            self._settings = settings

        def reset_accumulated(device: Any = None) -> None:
            known(device)

        # torch takes a build for one with CUDA if it has this function
        compiled = hasattr(torch._C, "_cuda_getDeviceCount")
        counted = {"_cuda_getDeviceCount": lambda: self.devices} if compiled else {}
        return {
            torch: {"tensor": tensor},
            torch._C: {"_accelerator_setAllocatorSettings": configure, **counted},
            torch.Tensor: {
                "to": to,
                "numpy": numpy,
                "pin_memory": pin_memory,
                "is_pinned": lambda x, device=None: self.memory.is_pinned(x),
                "record_stream": record_stream,
            },
            torch.cuda: {
                "_lazy_init": self.initialize,
                "Stream": Stream,
                "Event": Event,
                "stream": lambda stream: contextlib.nullcontext() if stream is None else stream,
                "current_stream": self.stream,
                "device_count": lambda: self.devices,
                "is_available": lambda: True,
                "is_initialized": lambda: self._initialized,
                "memory_stats": lambda device=None: {},
                "current_device": lambda: self._device,
                "set_device": set_device,
                "device": device_guard,
                "synchronize": synchronize,
                "set_sync_debug_mode": set_sync_debug_mode,
                "get_device_properties": properties,
                "get_device_name": lambda device=None: "Pretend GPU",
                "get_device_capability": lambda device=None: self._capability,
                "mem_get_info": mem_get_info,
                "memory_allocated": allocated,
                "memory_reserved": allocated,
                "max_memory_allocated": peak,
                "max_memory_reserved": peak,
                "reset_peak_memory_stats": reset_peak,
                "reset_accumulated_memory_stats": reset_accumulated,
                "empty_cache": lambda: None,
            },
        }


def _plain(value: Any) -> Any:
    """Return the data of a pretend tensor; anything else as it is."""
    return value.elem if isinstance(value, PretendTensor) else value


def _on_cpu(value: Any) -> Any:
    """Return an argument of an operation as the CPU needs it."""
    return torch.device("cpu") if isinstance(value, torch.device) else _plain(value)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a value with `function` applied to what is inside of its lists, tuples and dictionaries."""
    if isinstance(value, tuple | list):
        return type(value)(_mapped(function, part) for part in value)
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    return function(value)


def _tensors(*values: Any) -> list[Tensor]:
    """Return the tensors in lists, tuples and dictionaries."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(*value)
        elif isinstance(value, dict):
            found += _tensors(*value.values())
    return found


@cache
def _signature(func: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return the name of an operation, of its arguments, and of those that it changes in place."""
    arguments = func._schema.arguments
    written = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return func._schema.name.partition("::")[2], tuple(a.name for a in arguments), tuple(written)


def _indices(name: str, given: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors by which an operation indexes another one."""
    return _tensors(given["indices"]) if name in INDEXING else []


def _is_view(made: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Whether an operation moved no data: its result shares the memory of an input."""
    return bool(made) and {key_of(x) for x in made} <= {key_of(x) for x in tensors}


def _is_dense(x: Tensor) -> bool:
    """Whether the elements of a tensor fill its memory without gaps."""
    return (
        x.numel() == 0
        or sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1 == x.numel()
    )
