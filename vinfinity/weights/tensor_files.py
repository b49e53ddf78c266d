"""Files of named tensors, safetensors or pickled: first their headers are read, then tensor by tensor."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vinfinity.errors import WeightsError
from vinfinity.system.safetensors import TensorEntry, read_header
from vinfinity.weights.dtypes import HEADER_NAMES
from vinfinity.weights.named_files import PICKLES
from vinfinity.weights.pickles import read_pickle


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors. setting: the setting that names it. metadata: empty for a pickled file."""

    path: Path
    setting: str
    entries: Mapping[str, TensorEntry] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[str], Tensor]]:
        """Provide a function from names to tensors inside the block. Raises WeightsError if the file cannot be read."""
        if self.path.suffix in PICKLES:
            tensors = read_pickle(self.path, field=self.setting)
            assert isinstance(tensors, dict)
            yield lambda name: tensors[name].detach()
            return
        with contextlib.ExitStack() as opened:
            with _unreadable(self.path, self.setting):
                file = opened.enter_context(safe_open(self.path, framework="pt", device="cpu"))

            def read(name: str) -> Tensor:
                with _unreadable(self.path, self.setting):
                    return file.get_tensor(name)

            yield read


def read_tensor_file(path: Path, *, field: str) -> TensorFile:
    """Return the tensors of a file without their contents; a pickled file is mapped into memory.

    field: the setting that names the file. Raises WeightsError if it is damaged, or a pickle of anything but named
    tensors.
    """
    if path.suffix not in PICKLES:
        entries = read_header(path, field=field)
        with _unreadable(path, field), safe_open(path, framework="pt", device="cpu") as file:
            return TensorFile(path, field, entries, file.metadata() or {})
    tensors = read_pickle(path, field=field)
    if isinstance(tensors, list):
        remedy = (
            "use a file of named tensors; vinfinity models convert FILE NEW --complete-from videocrafter2"
            " makes a model from T2V-Turbo's list"
        )
        raise WeightsError(field, path, remedy, problem=f"is a list of {len(tensors)} tensors without names")
    return TensorFile(
        path,
        field,
        {
            name: TensorEntry(path, HEADER_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
            for name, tensor in tensors.items()
        },
    )


@contextlib.contextmanager
def _unreadable(path: Path, field: str) -> Iterator[None]:
    """Turn the errors of safetensors into a WeightsError."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        problem = f"cannot be read ({error})"
        raise WeightsError(field, path, "fetch the file again", problem=problem) from None
