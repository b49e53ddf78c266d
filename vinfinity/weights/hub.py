"""Published models, fetched: only the files that are needed, interrupted transfers resumed, hashes checked."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vinfinity.errors import InputError, OutputError, VinfinityError, did_you_mean
from vinfinity.models.families import FAMILIES, published_family
from vinfinity.models.family import Family, HubSource, PublishedModel, parts_of
from vinfinity.weights.convert import convert
from vinfinity.weights.named_files import PICKLES
from vinfinity.weights.registry import PUBLISHED, models_folder

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

CHUNK_BYTES = 2**20
JSONS = ("config.json", "scheduler_config.json")


def fetch(name: str, *, endpoint: str | None, say: Callable[[str], None]) -> Path:
    """Fetch a published model and the models it needs, and return its folder. Does nothing if it is already there.

    endpoint: the hub's address, None for the default. say: called with messages. Raises InputError for unknown names,
    VinfinityError if a file cannot be fetched or has the wrong hash; files that arrived are kept for the next attempt.
    """
    known, family = PUBLISHED.get(name), published_family(name)
    if known is None or family is None:
        remedy = f"{did_you_mean(name, list(PUBLISHED))} use {', '.join(PUBLISHED)}".strip()
        raise InputError("model", name, remedy, problem="is unknown")
    target = models_folder() / name
    if target.is_dir():
        say(f"{name} is already in {target}")
        return target
    _check_writable(models_folder())
    if known.complete_from is not None:
        fetch(known.complete_from, endpoint=endpoint, say=say)
    arrived = models_folder() / ".fetching" / known.source.repo.replace("/", "--")
    record = _download(known.source, family, arrived, endpoint=endpoint, say=say)
    say(f"{name}: checking and assembling")
    source = arrived / known.source.only if known.source.only is not None else arrived
    convert(
        source,
        target,
        complete_from=known.complete_from,
        extra=_own_files(name, known, record),
        link=True,
    )
    shutil.rmtree(arrived)
    return target


def _check_writable(folder: Path) -> None:
    """Create the folder. Raises OutputError if models cannot be kept there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "" if writable else os.strerror(errno.EACCES)
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise OutputError(f"{folder}: cannot be written ({reason}); set XDG_DATA_HOME to another folder")


def _own_files(name: str, known: PublishedModel, record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return vinfinity's own JSON files in a fetched model's folder."""
    files: dict[str, Mapping[str, Any]] = {"fetched.json": record}
    if known.card:
        files["card.json"] = {"name": name, **known.card}
    return files


def needed(names: Sequence[str], *, family: Family = FAMILIES[0], only: str | None = None) -> list[str]:
    """Return the files of a repository that a model needs; of each part's weights, one format and precision.

    safetensors are preferred to pickled files. Networks that run in half precision are fetched in half precision if
    available; those that always run in fp32, the autoencoder, in full. Raises ValueError if there is no model.
    """
    if only is not None:
        if only not in names:
            raise ValueError(f"has no {only}")
        return [only]
    alone = not any(name.startswith(f"{family.denoiser}/") for name in names)
    chosen = []
    for part in parts_of(family):
        folder = "." if alone and part == family.denoiser else part
        inside = [name for name in names if str(PurePosixPath(name).parent) == folder]
        if part == "tokenizer":
            chosen += [name for name in inside if name.endswith((".json", ".txt"))]
            continue
        chosen += [name for name in inside if PurePosixPath(name).name in JSONS]
        if (network := family.networks.get(part)) is not None:
            chosen += _weights(inside, prefer_fp16=not network.always_fp32)
    if not any(PurePosixPath(name).suffix in (".safetensors", ".bin", ".pth") for name in chosen):
        raise ValueError("has no model in diffusers' layout")
    return chosen


def _weights(names: Sequence[str], *, prefer_fp16: bool) -> list[str]:
    """Return the weight files of a part in one format and precision, with the index of shards."""
    for suffix in (".safetensors", ".bin", ".pth"):
        files = [name for name in names if suffix in name]
        variant = [name for name in files if ".fp16" in name]
        plain = [name for name in files if name not in variant and not _other_variant(name, suffix)]
        for choice in (variant, plain) if prefer_fp16 else (plain, variant):
            if choice:
                return choice
    return []


def _other_variant(name: str, suffix: str) -> bool:
    """Return whether a file is a variant such as ".non_ema"."""
    stem = PurePosixPath(name).name.partition(suffix)[0]
    return "." in stem


def _download(
    source: HubSource, family: Family, folder: Path, *, endpoint: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Fetch a repository's files into `folder`. Return repository, revision and hashes.

    Raises OutputError, before anything is fetched, if there is too little space.
    """
    import huggingface_hub

    try:
        token = _token()
        api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
        info = api.model_info(source.repo, revision=source.revision, files_metadata=True)
    except Exception as error:
        # the hub's client raises the errors of its HTTP library, which differ between versions
        raise _cannot_fetch(source, error) from None
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    try:
        names = needed(list(siblings), family=family, only=source.only)
    except ValueError as error:
        raise VinfinityError(
            f"{source.repo}: {error}; the repository has changed, please report it"
        ) from None
    check_space({name: siblings[name].size or 0 for name in names}, folder, target=models_folder())
    hashes: dict[str, str] = {}
    for name in names:
        say(f"{source.repo}: {name} ({(siblings[name].size or 0) / 2**20:,.1f} MiB)")
        try:
            path = Path(
                huggingface_hub.hf_hub_download(
                    source.repo, name, revision=info.sha, local_dir=folder, endpoint=endpoint, token=token
                )
            )
        except Exception as error:
            raise _cannot_fetch(source, error) from None
        _check_hash(path, siblings[name], repo=source.repo)
        hashes[name] = _hash(path, git=False)
    return {"repo": source.repo, "revision": info.sha, "files": hashes}


def _check_hash(path: Path, sibling: "RepoSibling", *, repo: str) -> None:
    """Raise VinfinityError if a file does not have the hash that the hub states; delete the file then."""
    expected = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    actual = _hash(path, git=sibling.lfs is None)
    if expected is not None and expected != actual:
        path.unlink()
        raise VinfinityError(
            f"{repo}: {sibling.rfilename} has the hash {actual}, not {expected}; it was deleted, fetch it again"
        )


def _cannot_fetch(source: HubSource, error: Exception) -> VinfinityError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return VinfinityError(f"{source.repo}: cannot be fetched ({first}); try again to resume the transfer")


def check_space(sizes: Mapping[str, int], arrived: Path, *, target: Path) -> None:
    """Raise OutputError if there is too little space for files of these sizes, by name.

    safetensors become part of the model as they are. Pickled files exist twice while they are converted. arrived: the
    folder of files fetched before. target: the folder of models.
    """
    there = sum(path.stat().st_size for path in arrived.rglob("*") if path.is_file())
    missing = max(0, sum(sizes.values()) - there)
    converted = sum(size for name, size in sizes.items() if PurePosixPath(name).suffix in PICKLES)
    free = shutil.disk_usage(target).free
    if free < missing + converted:
        raise OutputError(
            f"{target}: has {free / 1e9:.1f} GB free, but {(missing + converted) / 1e9:.1f} GB are needed; "
            "free some space, or set XDG_DATA_HOME to another folder"
        )


def _token() -> bool | None:
    """Return None to let the hub's client look for the user's token, or False if the token cannot be read."""
    import huggingface_hub

    try:
        huggingface_hub.get_token()
    except OSError:
        return False
    return None


def _hash(path: Path, *, git: bool) -> str:
    """Return the SHA-256 of a file, or the SHA-1 by which git names it."""
    total = hashlib.sha1(usedforsecurity=False) if git else hashlib.sha256()
    if git:
        total.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return repository, revision and hashes of a fetched model; None for a folder that was not fetched."""
    path = folder / "fetched.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
