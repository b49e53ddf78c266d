"""PyTorch's pickled files, read for conversion and as LoRAs. No code in them runs."""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.errors import WeightsError, one_line

NAMED_ONLY = "use a file of named tensors"


def read_pickle(path: Path, *, field: str = "model") -> dict[str, Tensor] | list[Tensor]:
    """Return the tensors of a file that torch.save wrote: by name, or in order if it has a list.

    The file is memory-mapped; legacy files that cannot be mapped are read into memory. Only tensors and plain
    containers are unpickled. field: the setting that names the file. Raises WeightsError if the file has anything else
    in it, or is damaged.
    """
    try:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error, field) from None
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError, TypeError) as error:
        problem = f"is damaged or not a PyTorch file ({str(error).split('. ')[0] or 'empty'})"
        raise WeightsError(field, path, "fetch the file again", problem=problem) from None
    except OSError as error:
        raise WeightsError(field, path, "check the path", problem=f"{error.strerror}") from None
    return _tensors(path, values, field)


def _tensors(path: Path, values: object, field: str) -> dict[str, Tensor] | list[Tensor]:
    if isinstance(values, list) and values and all(isinstance(value, Tensor) for value in values):
        return values
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict) or not values:
        kind = type(values).__name__
        raise WeightsError(field, path, NAMED_ONLY, problem=f"has a {kind}, not weights")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            problem = f"has {name!r} of type {type(value).__name__}, which is not a tensor"
            raise WeightsError(field, path, NAMED_ONLY, problem=problem)
    return values


def _refused(path: Path, error: pickle.UnpicklingError, field: str) -> WeightsError:
    """Return the error for a file with more in it than tensors, naming the object."""
    text = one_line(error)
    named = re.search(r"GLOBAL (\S+)", text) or re.search(r"class (\S+)", text)
    if named is None:
        return WeightsError(field, path, "fetch the file again", problem="is damaged or not a PyTorch file")
    problem = f"has more than weights in it: {named[1]}, which could run code"
    return WeightsError(field, path, "use a file that has only tensors", problem=problem)
