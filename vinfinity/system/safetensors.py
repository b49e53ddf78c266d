"""Weight files before any weight is read: which files hold a part of a model, and what is in them.

Nothing here imports torch: a header is a few kilobytes of JSON, so that missing, truncated or foreign files are named
at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinfinity.errors import WeightsError


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is and what it is: its file, its dtype as safetensors writes it ("F16"), its shape."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises WeightsError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError("model", path, "the model's folder is incomplete", problem="is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(
            "model", path, "fetch the file again", problem=f"cannot be read ({error})"
        ) from None
    if not isinstance(values, dict):
        raise WeightsError("model", path, "fetch the file again", problem="holds no JSON object")
    return values


def read_header(path: Path, *, field: str = "model") -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, from its header alone.

    field: the setting that named the file. Raises WeightsError where the file is missing, shorter than its header says,
    or no safetensors file.
    """
    again = "fetch the file again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, 100_000_000):
                raise WeightsError(field, path, again, problem="is no safetensors file, or truncated")
            header = json.loads(file.read(length))
        entries = {
            name: TensorEntry(path, str(entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
        ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        whole = 8 + length + max(ends, default=0)
    except OSError as error:
        raise WeightsError(
            "model", path, "the model's folder is incomplete", problem=str(error.strerror)
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise WeightsError(field, path, again, problem="has a damaged header") from None
    if size != whole:
        problem = f"is truncated: {size:,} of {whole:,} bytes"
        raise WeightsError(field, path, again, problem=problem)
    return entries


def find_weights(folder: Path, stem: str, *, half: bool) -> dict[str, TensorEntry]:
    """The tensors of one part of a model, whole or sharded, in full or half precision.

    folder: such as MODEL/unet. stem: "diffusion_pytorch_model" or "model". half: prefer the files of the "fp16" variant
    where there are both. Raises WeightsError where there are none, or where a shard lacks what the index promises.
    """
    variants = ["fp16", None] if half else [None, "fp16"]
    for variant in variants:
        dot = f".{variant}" if variant else ""
        single = folder / f"{stem}{dot}.safetensors"
        if single.exists():
            return read_header(single)
        for index in (
            folder / f"{stem}.safetensors.index{dot}.json",
            folder / f"{stem}{dot}.safetensors.index.json",
        ):
            if index.exists():
                return _read_shards(index)
    if pickles := find_pickles(folder):
        problem = f"holds its weights only as {pickles[0].name}"
        remedy = "convert them to safetensors first: vinfinity models convert OLD NEW"
        raise WeightsError("model", folder, remedy, problem=problem)
    raise WeightsError("model", folder, f"put {stem}.safetensors there", problem="holds no weights")


def find_pickles(folder: Path) -> list[Path]:
    """The pickled weight files of one part of a model, where it has no others; those of half precision last.

    Whole files come before shards, of which all are returned.
    """
    if any(folder.glob("*.safetensors")):
        return []
    files = sorted(path for suffix in ("bin", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    files = [path for path in files if ".fp16" not in path.name] or files
    shards = [path for path in files if "-of-" in path.name]
    return [path for path in files if path not in shards][:1] or shards


def _read_shards(index: Path) -> dict[str, TensorEntry]:
    """The tensors that an index distributes over several files."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise WeightsError("model", index, "fetch the file again", problem="has no weight_map")
    headers = {name: read_header(index.parent / str(name)) for name in sorted(set(map(str, places.values())))}
    lost = [key for key, name in places.items() if key not in headers[str(name)]]
    if lost:
        raise WeightsError(
            "model", index, "fetch its shards again", problem=f"promises {lost[0]}, which is not there"
        )
    return {key: headers[str(name)][key] for key, name in places.items()}
