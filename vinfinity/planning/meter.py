"""What operations hold and do, watched while they run on tensors without data."""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@dataclass(frozen=True)
class Made:
    """A new tensor without data, as an operation makes it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def again(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class Repeats:
    """Runs operations on tensors without data, each kind once: where an operation only makes a new tensor, the next one
    on the same shapes makes another like it, which takes a tenth of the time.
    """

    def __init__(self) -> None:
        self._made: dict[Any, Made | None] = {}

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What `function` returns. Raises what it raises."""
        key = (function, tuple(map(_kind, args)), tuple((name, _kind(arg)) for name, arg in kwargs.items()))
        made = self._made.get(key)
        if made is not None:
            return made.again()
        out = function(*args, **kwargs)
        if key not in self._made:
            self._made[key] = _only_made(out, args, kwargs)
        return out


def _only_made(out: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Made | None:
    """The result of an operation that made one tensor, and nothing else; None for others, such as views."""
    if not (isinstance(out, Tensor) and out.is_meta):
        return None
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    alone = out.untyped_storage().nbytes() == out.numel() * out.element_size()
    if not inputs or not alone or memory_of([out]) & memory_of(inputs):
        return None
    return Made(tuple(out.shape), out.stride(), out.dtype)


def _kind(argument: Any) -> Any:
    """What of an argument determines the shape of a result."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device.type
    if isinstance(argument, list | tuple):
        return tuple(map(_kind, argument))
    return type(argument), argument


def memory_of(tensors: Sequence[Tensor]) -> set[int]:
    """The memory that tensors lie in."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, until they are freed.

    now, host_now: bytes alive on the device and on the CPU. peak, host_peak: the most that were. Views share their
    tensor's memory and count once. The device is `meta`, whose tensors have no data: a copy of one to the CPU makes
    a tensor of that shape whose memory is never touched. With device="cpu" all is on the device.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = self.host_now = self.host_peak = 0
        self._views: dict[int, int] = {}  # live tensors of each storage
        self._repeats = Repeats()

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            out = self._repeats.run(function, args, kwargs or {})
        except NotImplementedError:
            # there is no data to copy from the device to the host
            out = _landed(function, args, kwargs or {})
        if isinstance(out, Tensor):
            self._watch(out)
        else:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._watch(leaf)
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size, on_device = storage._cdata, storage.nbytes(), tensor.device.type == self.device
        if key not in self._views:
            self._views[key] = 0
            self._add(size, on_device)
        self._views[key] += 1
        weakref.finalize(tensor, self._forget, key, size, on_device)

    def _forget(self, key: int, size: int, on_device: bool) -> None:
        self._views[key] -= 1
        if self._views[key] == 0:
            del self._views[key]
            self._add(-size, on_device)

    def _add(self, size: int, on_device: bool) -> None:
        if on_device:
            self.now += size
            self.peak = max(self.peak, self.now)
        else:
            self.host_now += size
            self.host_peak = max(self.host_peak, self.host_now)


def _landed(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a copy from `meta` to the CPU gives, its memory untouched. Raises what `function` does where it is none."""
    source = args[1] if function is aten.copy_.default else args[0]
    if not (isinstance(source, Tensor) and source.is_meta):
        raise NotImplementedError(f"{function} on {[type(arg) for arg in args]}")
    if function is aten.copy_.default:
        return args[0]
    dtype = next((arg for arg in (*args[1:], *kwargs.values()) if isinstance(arg, torch.dtype)), source.dtype)
    return torch.empty(source.shape, dtype=dtype, device="cpu")


class Work(TorchDispatchMode):
    """Counts the arithmetic of operations and the bytes that they move.

    operations: (floating-point operations, bytes read and written) of one operation -> how many there were; views are
    left out. flops: floating-point operations of all of them, a multiplication and an addition each one, of matrix
    products, convolutions and attention. attention_flops: those of attention's two products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[tuple[int, int]] = Counter()
        self.attention_flops = 0
        self._repeats = Repeats()

    @property
    def flops(self) -> int:
        return sum(flops * count for (flops, _), count in self.operations.items())

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = self._repeats.run(function, args, kwargs or {})
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not inputs or not outputs or _is_view(function, inputs, outputs):
            return out
        packet = getattr(function, "overloadpacket", None)
        flops = FLOPS[packet](args, outputs[0]) if packet in FLOPS else 0
        if packet is aten.scaled_dot_product_attention:
            self.attention_flops += flops
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        self.operations[flops, moved] += 1
        return out


def _is_view(function: Callable[..., Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether nothing moved: the result shares an input's memory, and the operation does not write there."""
    schema = getattr(function, "_schema", None)
    if schema is not None and schema.is_mutable:
        return False
    return memory_of(outputs) <= memory_of(inputs)


def _product(args: tuple[Any, ...], out: Tensor) -> int:
    return 2 * out.numel() * args[0].shape[-1]


def _sum_and_product(args: tuple[Any, ...], out: Tensor) -> int:
    return 2 * out.numel() * args[1].shape[-1]


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    return 2 * out.numel() * math.prod(args[1].shape[1:])


def _attention(args: tuple[Any, ...], out: Tensor) -> int:
    """args: queries (..., m, d), keys (..., t, d) and values (..., t, d2)."""
    q, k, v = args[:3]
    return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


# In inference mode operations arrive whole, as they are called: `linear` and not the product that it comes to.
FLOPS: Mapping[Any, Callable[[tuple[Any, ...], Tensor], int]] = {
    aten.linear: _product,
    aten.matmul: _product,
    aten.mm: _product,
    aten.bmm: _product,
    aten.addmm: _sum_and_product,
    aten.baddbmm: _sum_and_product,
    aten.conv1d: _convolution,
    aten.conv2d: _convolution,
    aten.conv3d: _convolution,
    aten.convolution: _convolution,
    aten.scaled_dot_product_attention: _attention,
}
