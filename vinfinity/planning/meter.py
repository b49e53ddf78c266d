"""Dispatch modes that measure the operations they enclose: live bytes, arithmetic and bytes moved."""

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from vinfinity.models.finite import tensors_in

aten = torch.ops.aten


@dataclass(frozen=True)
class MetaTensor:
    """The layout of a newly allocated meta tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def allocate(self) -> Tensor:
        """Allocate a meta tensor of this layout."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Argument:
    """An argument that an operation returns, such as the one it writes to. key: its position or its name."""

    key: int | str

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return this argument of a call."""
        return args[self.key] if isinstance(self.key, int) else kwargs[self.key]


class ShapeCache:
    """Operations on meta tensors, run once for each combination of shapes.

    If an operation only allocates its result, the next call with the same shapes allocates a tensor of the same layout,
    in a tenth of the time. If it returns one of its arguments, so does the next call.
    """

    def __init__(self) -> None:
        self._results: dict[Any, MetaTensor | Argument | None] = {}

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of `function`. Raises what it raises."""
        signatures = _signatures(args, kwargs)
        key = (function, signatures)
        known = self._results.get(key)
        if isinstance(known, MetaTensor):
            return known.allocate()
        if isinstance(known, Argument):
            return known.of(args, kwargs)
        out = _as_laid_out(function, args, function(*args, **kwargs))
        if key not in self._results:
            same_shapes = _signatures(args, kwargs) == signatures
            returned = _returned(out, args, kwargs) if same_shapes else None
            self._results[key] = returned or _allocated(out, args, kwargs)
        return out


def _returned(out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Argument | None:
    """Return which argument `out` is; None if it is none of them, or no meta tensor."""
    if not (isinstance(out, Tensor) and out.is_meta):
        return None
    arguments: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return next((Argument(key) for key, argument in arguments if argument is out), None)


def _as_laid_out(function: Callable[..., Any], args: tuple[Any, ...], out: Any) -> Any:
    """Return the result with the strides it has on CPUs and GPUs, where those of meta tensors differ.

    Convolutions of channels-last pictures are channels-last; attention stores the heads of a query together.
    """
    packet = getattr(function, "overloadpacket", None)
    if not isinstance(out, Tensor) or not out.is_meta:
        return out
    if out.dim() == 4 and packet is aten.conv2d and args[0].stride(1) == 1:
        return torch.empty_like(out, memory_format=torch.channels_last)
    if out.dim() == 4 and packet is aten.scaled_dot_product_attention:
        b, heads, queries, width = out.shape
        return out.new_empty(b, queries, heads, width).transpose(1, 2)
    return out


def _allocated(out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MetaTensor | None:
    """Return the layout of `out` if it is one new meta tensor; None for views, in-place results and anything else."""
    if not (isinstance(out, Tensor) and out.is_meta):
        return None
    inputs = list(tensors_in((args, kwargs)))
    dense = out.untyped_storage().nbytes() == out.numel() * out.element_size()
    if not inputs or not dense or storages([out]) & storages(inputs):
        return None
    return MetaTensor(tuple(out.shape), out.stride(), out.dtype)


def _signatures(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return tuple(map(_signature, args)), tuple((name, _signature(arg)) for name, arg in kwargs.items())


def _signature(argument: Any) -> Any:
    """Return the properties of an argument that determine the layout of a result."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device.type
    if isinstance(argument, list | tuple):
        return tuple(map(_signature, argument))
    return type(argument), argument


def storages(tensors: Sequence[Tensor]) -> set[int]:
    """Return identifiers of the memory blocks behind tensors, which views share with their base."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


class Meter(TorchDispatchMode):
    """Runs each operation, on meta tensors if possible, and passes it to `record`."""

    # shared by all meters: a plan traces many calls, whose shapes are mostly the same
    _cache = ShapeCache()

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """Record an operation; called after each one. out: its result."""
        raise NotImplementedError

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        try:
            out = self._cache.run(function, args, kwargs)
        except NotImplementedError:
            # a copy from meta to the CPU has no data to copy
            out = _copied_to_host(function, args, kwargs)
        self.record(function, args, kwargs, out)
        return out


def _copied_to_host(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the result of a copy from `meta` to the CPU, without touching its memory.

    Raises NotImplementedError for any other operation.
    """
    source = args[1] if function is aten.copy_.default else args[0]
    if not (isinstance(source, Tensor) and source.is_meta):
        raise NotImplementedError(f"{function} on {[type(arg) for arg in args]}")
    if function is aten.copy_.default:
        return args[0]
    dtype = next((arg for arg in (*args[1:], *kwargs.values()) if isinstance(arg, torch.dtype)), source.dtype)
    return torch.empty(source.shape, dtype=dtype, device="cpu")


class LiveBytes(Meter):
    """Counts the bytes of all tensors that operations create while it is active, until they are freed.

    now, host_now: live bytes on the device and on the CPU. peak, host_peak: the maximum of each. A tensor and its
    views count once. device: the type that counts as the device, `meta` by default; with "cpu", nothing counts as host.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = self.host_now = self.host_peak = 0
        # storage -> its number of live tensors
        self._references: dict[int, int] = {}

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        if isinstance(out, Tensor):
            self._watch(out)
        else:
            for tensor in tensors_in(out):
                self._watch(tensor)

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size, on_device = storage._cdata, storage.nbytes(), tensor.device.type == self.device
        if key not in self._references:
            self._references[key] = 0
            self.allocated(key, size, on_device=on_device)
        self._references[key] += 1
        weakref.finalize(tensor, self._release, key, size, on_device)

    def _release(self, key: int, size: int, on_device: bool) -> None:
        self._references[key] -= 1
        if self._references[key] == 0:
            del self._references[key]
            self.freed(key, size, on_device=on_device)

    def allocated(self, key: int, size: int, *, on_device: bool) -> None:
        """Count a new block of memory. key: identifies it until it is freed."""
        self._add(size, on_device)

    def freed(self, key: int, size: int, *, on_device: bool) -> None:
        """Subtract a block of memory after its last tensor is freed."""
        self._add(-size, on_device)

    def _add(self, size: int, on_device: bool) -> None:
        if on_device:
            self.now += size
            self.peak = max(self.peak, self.now)
        else:
            self.host_now += size
            self.host_peak = max(self.host_peak, self.host_now)


# operations that allocate memory without writing to it
ALLOCATIONS = (aten.empty_like, aten.new_empty, aten.empty, aten.new_empty_strided)
# operations that read only as much of their first input as they write
GATHERS = (aten.index_select, aten.embedding)
# operations that overwrite their first input without reading it
OVERWRITES = (aten.copy_, aten.zero_, aten.fill_)
# operations that use only the shape, type and device of their first input
CREATIONS = (aten.new_zeros, aten.new_ones, aten.new_full, aten.zeros_like, aten.ones_like, aten.full_like)


class WorkCounter(Meter):
    """Counts the arithmetic of operations and the bytes that they move.

    operations: (floating-point operations, bytes read and written) of an operation -> how often it ran, without views.
    flops: the floating-point operations of matrix products, convolutions and attention, where a multiplication and an
    addition count as two. attention_flops: those of attention's two products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: dict[tuple[int, int], float] = defaultdict(float)
        self.attention_flops = 0

    @property
    def flops(self) -> int:
        """The floating-point operations of all operations together."""
        return round(sum(flops * count for (flops, _), count in self.operations.items()))

    def extrapolated(self, more: "WorkCounter", steps: float) -> "WorkCounter":
        """Return this work plus `steps` times the difference between `more` and it."""
        result = WorkCounter()
        for key in {**self.operations, **more.operations}:
            own = self.operations.get(key, 0.0)
            result.operations[key] = own + steps * (more.operations.get(key, 0.0) - own)
        result.attention_flops = round(
            self.attention_flops + steps * (more.attention_flops - self.attention_flops)
        )
        return result

    def record(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        inputs, outputs = list(tensors_in((args, kwargs))), list(tensors_in(out))
        if not inputs or not outputs or _is_view(function, inputs, outputs):
            return
        packet = getattr(function, "overloadpacket", None)
        flops = flops_of(packet, args, kwargs, outputs[0])
        if packet in GATHERS:
            # only the selected rows are read
            inputs = outputs
        elif packet in OVERWRITES or packet in CREATIONS:
            inputs = list(tensors_in(args[1:]))
        elif "out" in kwargs:
            inputs = list(
                tensors_in((args, {name: value for name, value in kwargs.items() if name != "out"}))
            )
        if packet is aten.scaled_dot_product_attention:
            self.attention_flops += flops
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        self.operations[flops, moved] += 1


def _is_view(function: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Return whether no data moved: the result shares an input's memory, and the operation does not write to it."""
    schema = getattr(function, "_schema", None)
    if schema is not None and schema.is_mutable:
        return False
    if getattr(function, "overloadpacket", None) in ALLOCATIONS:
        return True
    return storages(outputs) <= storages(inputs)


def flops_of(packet: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Tensor) -> int:
    """Return the floating-point operations of a call, by torch's formulas or, for those in `COMPOSITE`, by ours."""
    if packet in COMPOSITE:
        return COMPOSITE[packet](args, out)
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _product_flops(args: tuple[Any, ...], out: Tensor) -> int:
    return 2 * out.numel() * args[0].shape[-1]


def _convolution_flops(args: tuple[Any, ...], out: Tensor) -> int:
    return int(conv_flop_count(list(args[0].shape), list(args[1].shape), list(out.shape)))


def _attention_flops(args: tuple[Any, ...], out: Tensor) -> int:
    """Return the operations of both products. args: queries (..., m, d), keys (..., t, d), values (..., t, d2)."""
    q, k, v = args[:3]
    return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


# In inference mode these operations arrive undecomposed, but torch's registry only has formulas for their parts. Its
# formula for attention also requires four dimensions.
COMPOSITE: Mapping[Any, Callable[[tuple[Any, ...], Tensor], int]] = {
    aten.linear: _product_flops,
    aten.matmul: _product_flops,
    aten.conv1d: _convolution_flops,
    aten.conv2d: _convolution_flops,
    aten.conv3d: _convolution_flops,
    aten.scaled_dot_product_attention: _attention_flops,
}
