"""Values that are no numbers: which layer made them."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextlib.contextmanager
def first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """While it is open, the list that it gives fills with the layers whose output is not finite, in the order of work.

    A layer comes before those that it is a part of. For a second run of a step that went wrong: every output is read
    back from the device.
    """
    names: list[str] = []

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                names.append(name)

        return module.register_forward_hook(hook)

    handles = [watch(name, module) for name, module in network.named_modules() if name]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()
