"""Finds the layers whose output is NaN or infinite."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def _tensors(output: object) -> Iterator[Tensor]:
    """The tensors in a layer's output."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


@contextlib.contextmanager
def first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """While the context is open, the yielded list collects the layers with NaN or infinite output, in execution order.

    A layer comes before the layers that contain it. Meant for running a failed step again: every output is read back
    from the device.
    """
    names: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not all(tensor.isfinite().all() for tensor in _tensors(output)):
                names.append(name)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in network.named_modules() if name]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()
