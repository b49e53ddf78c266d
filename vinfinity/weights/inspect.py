"""Descriptions of model folders: architecture, sizes and problems, from headers and configurations alone."""

import math
from collections import Counter
from pathlib import Path
from typing import cast

from vinfinity.errors import InputError, WeightsError
from vinfinity.models.decoder import Decoder
from vinfinity.models.families import family_of
from vinfinity.models.family import Family, Network, parts_of
from vinfinity.system.safetensors import TensorEntry, read_json
from vinfinity.weights.card import model_family, read_card
from vinfinity.weights.hub import read_record
from vinfinity.weights.load import (
    check_fit,
    decoder_class,
    empty_network,
    find_decoder,
    known_decoders,
    load_scheduler,
)
from vinfinity.weights.part_files import find_weights


def describe_model(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the rows of a table that describes a model's or a decoder's folder, and its problems, one line each."""
    rows: list[tuple[str, str]] = [("folder", str(folder))]
    problems: list[str] = []
    try:
        if family_of(folder) is None and (folder / "config.json").is_file():
            return _describe_decoder(folder)
        family = model_family(folder)
    except InputError as error:
        return rows, [error.message]
    for part in parts_of(family):
        if not (folder / part).is_dir():
            problems.append(
                f"{part}: is missing; vinfinity models convert completes a folder from another model"
            )
        elif part in family.networks:
            try:
                rows.append((part, _describe_part(folder / part, family.networks[part])))
            except InputError as error:
                problems.append(error.message)
    if problems:
        return rows, problems
    try:
        rows += _describe_card(folder, family)
    except InputError as error:
        return rows, [error.message]
    if (record := read_record(folder)) is not None:
        rows.append(("fetched from", f"{record['repo']} at {record['revision']}"))
    return rows, problems


def _describe_card(folder: Path, family: Family) -> list[tuple[str, str]]:
    """Return the rows of a model's parts that are not networks, and of its defaults. Raises InputError."""
    card = read_card(str(folder))
    family.check_parts(card.configs, folder)
    schedule = load_scheduler(folder / "scheduler", flow=family.flow)
    tokenizer = family.load_tokenizer(folder / "tokenizer", length=card.text_length)
    ignored = schedule.ignored_by(str(card.defaults["sampler"]))
    defaults = {key: value for key, value in card.defaults.items() if value != "" and "." not in key}
    return [
        ("tokenizer", f"{tokenizer.vocabulary_size:,} tokens, {tokenizer.length} per text"),
        ("scheduler", ignored.removeprefix("scheduler: ") or schedule.scheduler or "no class"),
        ("trained on", f"clips of {card.trained_frames} frames"),
        ("defaults", ", ".join(f"{key} {value}" for key, value in defaults.items())),
    ]


def _describe_decoder(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the rows that describe a decoder's folder, and no problems. Raises WeightsError."""
    rows = [("folder", str(folder))]
    if (kind := decoder_class(folder)) not in known_decoders():
        remedy = "vinfinity models convert makes a model folder from other layouts"
        problem = f"has the class {kind}, which is neither a known decoder nor a whole model"
        raise WeightsError("model", folder, remedy, problem=problem)
    module, sources = find_decoder(folder)
    config, entries = cast(Decoder, module).config, dict(sources.values())
    rows.append(("decoder", f"{_size_text(entries)}; {type(module).__name__}"))
    rows.append(
        ("for latents of", f"{config.latent_channels} channels, {config.downscale} pixels per position")
    )
    rows.append(
        ("use", f"vinfinity generate --model MODEL --decoder {folder} ..., MODEL one with such latents")
    )
    return rows, []


def _describe_part(folder: Path, network: Network) -> str:
    entries = find_weights(folder, network.stem, prefer_fp16=False)
    shapes = {
        parameter: entry.shape
        for name, entry in entries.items()
        if (parameter := network.rename(name)) is not None
    }
    check_fit(empty_network(network, folder), shapes, folder)
    config = read_json(folder / "config.json")
    shown = ", ".join(
        f"{key.strip('_')} {config[key]}" for key in network.shown if config.get(key) not in (None, False)
    )
    return f"{_size_text(entries)}; {shown}"


def _size_text(entries: dict[str, TensorEntry]) -> str:
    """Format parameters, types and bytes."""
    parameters = sum(math.prod(entry.shape) for entry in entries.values())
    types = Counter(entry.dtype for entry in entries.values())
    size = sum(path.stat().st_size for path in {entry.path for entry in entries.values()})
    names = " and ".join(name for name, _ in types.most_common())
    return f"{parameters / 1e6:,.1f} M parameters, {names}, {size / 2**20:,.1f} MiB"
