"""PyTorch's pickled files, read for conversion only, and never with code in them."""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.errors import WeightsError

PICKLES = (".ckpt", ".bin", ".pth", ".pt")


def read_pickle(path: Path) -> dict[str, Tensor] | list[Tensor]:
    """The tensors of a file that torch.save wrote: by name, or in order where it holds a list.

    They are mapped into memory, not read; the files of old that cannot be are read whole. Only tensors and plain
    containers are unpickled. Raises WeightsError where the file holds anything else, or is damaged.
    """
    try:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError, TypeError) as error:
        problem = f"is damaged, or no file of PyTorch ({str(error).split('. ')[0] or 'empty'})"
        raise WeightsError("model", path, "fetch the file again", problem=problem) from None
    except OSError as error:
        raise WeightsError("model", path, "check the path", problem=f"{error.strerror}") from None
    return _tensors(path, values)


def _tensors(path: Path, values: object) -> dict[str, Tensor] | list[Tensor]:
    if isinstance(values, list) and values and all(isinstance(value, Tensor) for value in values):
        return values
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict) or not values:
        kind = type(values).__name__
        raise WeightsError(
            "model", path, "only files of named tensors are read", problem=f"holds no weights but a {kind}"
        )
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problem = f"holds {name!r}, a {type(value).__name__} and no tensor"
            raise WeightsError("model", path, "only files of named tensors are read", problem=problem)
    return values


def _refused(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    """The refusal of a file with more in it than tensors, naming what it is."""
    text = " ".join(str(error).split())
    named = re.search(r"GLOBAL (\S+)", text) or re.search(r"class (\S+)", text)
    if named is None:
        return WeightsError(
            "model", path, "fetch the file again", problem="is damaged, or no file of PyTorch"
        )
    problem = f"holds more than weights: {named[1]}, which could run code"
    return WeightsError("model", path, "use a file of nothing but tensors", problem=problem)
