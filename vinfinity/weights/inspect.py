"""What is in a model's folder: its architecture, sizes and problems, from headers and configurations alone."""

import math
from collections import Counter
from pathlib import Path

from vinfinity.errors import InputError
from vinfinity.models.unet3d.tokenizer import load_tokenizer
from vinfinity.system.safetensors import TensorEntry, find_weights, read_json
from vinfinity.weights.card import PARTS, read_card
from vinfinity.weights.hub import read_record
from vinfinity.weights.load import KINDS, check_fit, check_widths, empty_network, find_decoder, load_scheduler

ARCHITECTURE = {
    "unet": ("_class_name", "block_out_channels", "cross_attention_dim", "fps_cond", "time_cond_proj_dim"),
    "vae": ("_class_name", "block_out_channels", "scaling_factor"),
    "text_encoder": ("model_type", "hidden_size", "num_hidden_layers"),
}


def describe_model(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows for a table of what a model's folder holds, or one of a decoder alone, and its problems, one line each."""
    if (folder / "config.json").is_file() and not any((folder / part).is_dir() for part in PARTS):
        return _describe_decoder(folder)
    rows: list[tuple[str, str]] = [("folder", str(folder))]
    problems: list[str] = []
    for part in PARTS:
        if not (folder / part).is_dir():
            problems.append(
                f"{part}: is missing; vinfinity models convert completes a folder from another model"
            )
        elif part in KINDS:
            try:
                rows.append((part, _describe_part(folder / part, part)))
            except InputError as error:
                problems.append(error.message)
    if problems:
        return rows, problems
    try:
        card = read_card(str(folder))
        check_widths({part: empty_network(part, folder / part) for part in KINDS}, folder)
        load_scheduler(folder / "scheduler")
        tokenizer = load_tokenizer(folder / "tokenizer", length=card.text_length)
        rows.append(
            ("tokenizer", f"{tokenizer.tokenizer.get_vocab_size():,} tokens, {tokenizer.length} to a text")
        )
    except InputError as error:
        return rows, [error.message]
    rows.append(("trained on", f"clips of {card.trained_frames} frames"))
    rows.append(
        ("defaults", ", ".join(f"{key} {value}" for key, value in card.defaults.items() if value != ""))
    )
    if (record := read_record(folder)) is not None:
        rows.append(("fetched from", f"{record['repo']} at {record['revision']}"))
    return rows, problems


def _describe_decoder(folder: Path) -> tuple[list[tuple[str, str]], list[str]]:
    rows = [("folder", str(folder))]
    try:
        network, sources = find_decoder(folder)
    except InputError as error:
        return rows, [error.message]
    config, entries = network.config, dict(sources.values())
    rows.append(("decoder", f"{_amount(entries)}; {type(network).__name__}"))
    rows.append(("for latents of", f"{config.latent_channels} channels, {config.factor} pixels a side"))
    rows.append(("use", f"vinfinity generate --decoder {folder} ..."))
    return rows, []


def _describe_part(folder: Path, part: str) -> str:
    kind = KINDS[part]
    entries = find_weights(folder, kind.stem, half=False)
    shapes = {target: e.shape for name, e in entries.items() if (target := kind.rename(name)) is not None}
    check_fit(empty_network(part, folder), shapes, folder)
    config = read_json(folder / "config.json")
    told = ", ".join(
        f"{key.strip('_')} {config[key]}"
        for key in ARCHITECTURE[part]
        if config.get(key) not in (None, False)
    )
    return f"{_amount(entries)}; {told}"


def _amount(entries: dict[str, TensorEntry]) -> str:
    """Parameters, types and bytes."""
    parameters = sum(math.prod(entry.shape) for entry in entries.values())
    types = Counter(entry.dtype for entry in entries.values())
    size = sum(path.stat().st_size for path in {entry.path for entry in entries.values()})
    names = " and ".join(name for name, _ in types.most_common())
    return f"{parameters / 1e6:,.1f} M parameters, {names}, {size / 2**20:,.1f} MiB"
