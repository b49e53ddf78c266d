"""The weight files of one part of a model, such as its UNet: which they are, and which tensors they hold."""

from pathlib import Path

from vinfinity.errors import WeightsError
from vinfinity.system.safetensors import TensorEntry, read_header, read_json


def find_weights(folder: Path, stem: str, *, prefer_fp16: bool) -> dict[str, TensorEntry]:
    """Return the tensors of one part of a model, in one file or in shards, in full or half precision.

    folder: for instance MODEL/unet. stem: "diffusion_pytorch_model" or "model". prefer_fp16: which variant to take if
    both exist. Raises WeightsError if there are no weights, or if a shard lacks a tensor that the index lists.
    """
    variants = ["fp16", None] if prefer_fp16 else [None, "fp16"]
    for variant in variants:
        dot = f".{variant}" if variant else ""
        single = folder / f"{stem}{dot}.safetensors"
        if single.exists() or single.is_symlink():
            return read_header(single)
        for index in (
            folder / f"{stem}.safetensors.index{dot}.json",
            folder / f"{stem}{dot}.safetensors.index.json",
        ):
            if index.exists():
                return _read_shards(index)
    if pickles := find_pickles(folder):
        problem = f"has its weights only as {pickles[0].name}"
        remedy = "convert them to safetensors first: vinfinity models convert OLD NEW"
        raise WeightsError("model", folder, remedy, problem=problem)
    raise WeightsError("model", folder, f"put {stem}.safetensors there", problem="has no weights")


def find_pickles(folder: Path) -> list[Path]:
    """Return the pickled weight files of one part of a model: a whole file, or else all shards.

    Full precision is preferred to half. The list is empty if the part has safetensors.
    """
    if any(folder.glob("*.safetensors")):
        return []
    files = sorted(path for suffix in ("bin", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
    files = [path for path in files if ".fp16" not in path.name] or files
    shards = [path for path in files if "-of-" in path.name]
    return [path for path in files if path not in shards][:1] or shards


def _read_shards(index: Path) -> dict[str, TensorEntry]:
    """Return the tensors of several files, by their index."""
    file_of = read_json(index).get("weight_map")
    if not isinstance(file_of, dict):
        raise WeightsError("model", index, "fetch the file again", problem="has no weight_map")
    headers = {
        name: read_header(index.parent / str(name)) for name in sorted(set(map(str, file_of.values())))
    }
    missing = [key for key, name in file_of.items() if key not in headers[str(name)]]
    if missing:
        raise WeightsError(
            "model", index, "fetch its shards again", problem=f"lists {missing[0]}, which its shard lacks"
        )
    return {key: headers[str(name)][key] for key, name in file_of.items()}
