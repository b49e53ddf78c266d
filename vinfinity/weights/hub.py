"""Fetching published models: only the files that are needed, resumed where a transfer broke, checked by hash."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vinfinity.errors import InputError, VinfinityError, nearest
from vinfinity.weights.card import PARTS
from vinfinity.weights.convert import convert
from vinfinity.weights.registry import KNOWN, KnownModel, Source, models_folder

BLOCK = 2**20
JSONS = ("config.json", "scheduler_config.json")


def fetch(name: str, *, endpoint: str | None, say: Callable[[str], None]) -> Path:
    """Fetches a known model and what it is used with, and returns its folder; does nothing where it is there already.

    endpoint: of the hub, None for the usual one. say: is told what happens. Raises InputError for names that are not
    known, VinfinityError where a file cannot be had or does not have its hash; what has arrived is kept for the next
    try.
    """
    known = KNOWN.get(name)
    if known is None:
        close = nearest(name, list(KNOWN))
        hint = f"did you mean {close}? " if close else ""
        raise InputError("model", name, f"{hint}known are {', '.join(KNOWN)}", problem="is not known")
    target = models_folder() / name
    if target.is_dir():
        say(f"{name} is in {target} already")
        return target
    if known.complete_from is not None:
        fetch(known.complete_from, endpoint=endpoint, say=say)
    arrived = models_folder() / ".fetching" / known.source.repo.replace("/", "--")
    record = _download(known.source, arrived, endpoint=endpoint, say=say)
    say(f"{name}: checking and putting together")
    source = arrived / known.source.only if known.source.only is not None else arrived
    convert(
        source,
        target,
        complete_from=known.complete_from,
        extra=_own_files(name, known, record),
    )
    shutil.rmtree(arrived)
    return target


def _own_files(name: str, known: KnownModel, record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    files: dict[str, Mapping[str, Any]] = {"fetched.json": record}
    if known.card:
        files["card.json"] = {"name": name, **known.card}
    return files


def needed(names: Sequence[str], *, only: str | None = None) -> list[str]:
    """The files of a repository that a model needs, of each part's weights one kind.

    safetensors come before pickled files. UNet and text encoder are taken in half precision where there is one, as they
    are used; the autoencoder, which decodes in full precision, in full. Raises ValueError where there is no model.
    """
    if only is not None:
        if only not in names:
            raise ValueError(f"has no {only}")
        return [only]
    alone = not any(name.startswith("unet/") for name in names)
    chosen = []
    for part in PARTS:
        folder = "." if alone and part == "unet" else part
        inside = [name for name in names if str(PurePosixPath(name).parent) == folder]
        if part == "tokenizer":
            chosen += [name for name in inside if name.endswith((".json", ".txt"))]
            continue
        chosen += [name for name in inside if PurePosixPath(name).name in JSONS]
        if part != "scheduler":
            chosen += _weights(inside, half=part != "vae")
    if not any(PurePosixPath(name).suffix in (".safetensors", ".bin", ".pth") for name in chosen):
        raise ValueError("holds no model in diffusers' layout")
    return chosen


def _weights(names: Sequence[str], *, half: bool) -> list[str]:
    """One kind of weight files of a part, with its index where they are sharded."""
    for suffix in (".safetensors", ".bin", ".pth"):
        files = [name for name in names if suffix in name]
        variant = [name for name in files if ".fp16" in name]
        plain = [name for name in files if name not in variant and not _other_variant(name, suffix)]
        for kind in (variant, plain) if half else (plain, variant):
            if kind:
                return kind
    return []


def _other_variant(name: str, suffix: str) -> bool:
    """Whether a file is of a variant such as ".non_ema"."""
    stem = PurePosixPath(name).name.partition(suffix)[0]
    return "." in stem


def _download(
    source: Source, folder: Path, *, endpoint: str | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Fetches a repository's files into `folder`; returns what was fetched, with hashes."""
    import huggingface_hub

    def failed(error: Exception) -> VinfinityError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return VinfinityError(
            f"{source.repo}: cannot be fetched ({first}); try again to go on where it stopped"
        )

    try:
        api = huggingface_hub.HfApi(endpoint=endpoint)
        info = api.model_info(source.repo, revision=source.revision, files_metadata=True)
    except Exception as error:
        # the client of the hub raises errors of the library below it, which differ between versions
        raise failed(error) from None
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    try:
        names = needed(list(siblings), only=source.only)
    except ValueError as error:
        raise VinfinityError(f"{source.repo}: {error}; the repository has changed, tell us") from None
    hashes: dict[str, str] = {}
    for name in names:
        sibling = siblings[name]
        size = sibling.size or 0
        say(f"{source.repo}: {name} ({size / 2**20:,.1f} MiB)")
        try:
            path = Path(
                huggingface_hub.hf_hub_download(
                    source.repo, name, revision=info.sha, local_dir=folder, endpoint=endpoint
                )
            )
        except Exception as error:
            raise failed(error) from None
        expected = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
        if expected is not None and expected != (found := _hash(path, git=sibling.lfs is None)):
            path.unlink()
            raise VinfinityError(
                f"{source.repo}: {name} has the hash {found}, not {expected}; it was removed, fetch it again"
            )
        hashes[name] = _hash(path, git=False)
    return {"repo": source.repo, "revision": info.sha, "files": hashes}


def _hash(path: Path, *, git: bool) -> str:
    """SHA-256 of a file, or the SHA-1 by which git names it."""
    total = hashlib.sha1(usedforsecurity=False) if git else hashlib.sha256()
    if git:
        total.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was fetched into a model's folder: repository, revision and hashes; None for other folders."""
    path = folder / "fetched.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
