"""Conversion of published weights in other layouts to a model folder. Everything is checked before the first write.

Sources: a checkpoint in the layout of its authors (VideoCrafter2's `model.ckpt`), their files of single networks or the
folder of them (Wan 2.1), diffusers folders with `.bin` or `.pth` files, folders with only a denoiser, and a list of
low-rank factors (T2V-Turbo's `unet_lora.pt`) for the model it was trained on. The folder appears complete or not at
all.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vinfinity.errors import InputError, WeightsError
from vinfinity.models.checkpoint import Checkpoint, CheckpointPart, changed
from vinfinity.models.families import FAMILIES, family_of
from vinfinity.models.family import Family, Network, parts_of
from vinfinity.system.files import cannot_write, temporary, to_json
from vinfinity.system.safetensors import read_json
from vinfinity.weights.card import find_model, model_family, own_card
from vinfinity.weights.dtypes import TORCH_TYPES, WEIGHT_TYPES
from vinfinity.weights.load import check_fit, listed, parse_values
from vinfinity.weights.named_files import PICKLES, check_conversion
from vinfinity.weights.originals import OriginalPart, find_originals
from vinfinity.weights.part_files import find_pickles, find_weights
from vinfinity.weights.pickles import read_pickle
from vinfinity.weights.write import write_safetensors

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]

SCHEDULE = "scheduler_config.json"
SCHEDULE_FILE = f"scheduler/{SCHEDULE}"
# The files of the parts that are not networks, as patterns.
FILES_OF = {"tokenizer": "*.*", "scheduler": SCHEDULE}

# The tokens of CLIP's text encoders, for checking tokenizers only: a run uses the model's own length.
TEXT_LENGTH = 77


@dataclass(frozen=True)
class Weights:
    """A weight file to write. tensors: opened when it is written; named and shaped as in `layout`.

    files: the file of each tensor, if those files already use these names; else empty.
    """

    layout: Layout
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderPlan:
    """A model folder before it is written: paths inside it, and their contents."""

    family: Family
    weights: dict[str, Weights] = field(default_factory=dict)
    jsons: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)

    def weight_file(self, part: str) -> str:
        """Return the path of a network's weights."""
        return f"{part}/{self.family.networks[part].stem}.safetensors"


def convert(
    source: Path,
    target: Path,
    *,
    complete_from: str | None = None,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    link: bool = False,
) -> Path:
    """Write the model in `source`, a file or a folder, to the new folder `target`, and return it.

    complete_from: the model (a name or a folder) that supplies parts which `source` lacks, or that low-rank factors
    were trained on. dtype: the type of the weights; None keeps the source's. extra: more JSON files, by name. link:
    whether weight files that need no change may be hard links to those of the source, which must then never be written
    to again. Raises InputError if the source cannot be used, OutputError if writing fails.
    """
    check_conversion(source, target)
    donor = None if complete_from is None else find_model(complete_from)
    plan = (
        _plan_folder(source, donor, name=target.name)
        if os.path.isdir(source)
        else _plan_file(source, donor, name=target.name)
    )
    plan.jsons.update(extra or {})
    _write(plan, target, dtype, link=link)
    return target


# ---- planning ----


def _plan_folder(source: Path, donor: Path | None, *, name: str) -> FolderPlan:
    """Plan a diffusers folder, one with only a denoiser, or one with its authors' files.

    All weight files become safetensors.
    """
    family = family_of(source)
    alone = family is None
    if family is None:
        originals = _plan_originals(source, donor, name=name)
        if originals is not None:
            return originals
        family = _family_of_denoiser(source)
    folders = {part: source / part for part in parts_of(family) if (source / part).is_dir()}
    folders[family.denoiser] = source if alone else source / family.denoiser
    plan = FolderPlan(family)
    _complete(plan, source, folders, donor)
    # a donor's card describes its own denoiser
    plan.jsons["card.json"] = own_card(source) | {"name": name}
    _check_plan(plan, source, folders)
    return plan


def _family_of_denoiser(folder: Path) -> Family:
    """Return the family of the denoiser in a folder, by its config.json. Raises WeightsError if none supports it."""
    if not (folder / "config.json").exists():
        remedy = "use a folder in diffusers' or in Wan's own layout, or VideoCrafter2's model.ckpt"
        problem = f"has no {' or '.join(family.denoiser for family in FAMILIES)}"
        raise WeightsError("source", folder, remedy, problem=problem)
    values = read_json(folder / "config.json")
    kind = str(values.get("_class_name", ""))
    family = next((known for known in FAMILIES if kind.startswith(known.denoiser_class)), None)
    if family is None:
        remedy = "use a model folder, or the folder of its UNet or transformer"
        problem = f"is a {kind}" if kind else "has a config.json without _class_name"
        raise WeightsError("source", folder, remedy, problem=problem)
    parse_values(values, family.networks[family.denoiser].read_config, folder)
    return family


def _plan_file(source: Path, donor: Path | None, *, name: str) -> FolderPlan:
    """Plan a file: one network or a whole checkpoint in its authors' layout, or a list of low-rank factors.

    name: the name of the new model.
    """
    originals = _plan_originals(source, donor, name=name)
    if originals is not None:
        return originals
    if source.suffix not in PICKLES:
        remedy = f"use a folder, or a file that ends in {', '.join(PICKLES)}"
        raise InputError("source", source, remedy, problem="has a layout that cannot be converted")
    values = read_pickle(source)
    if isinstance(values, list):
        return _plan_distillation(source, values, donor, name=name)
    for family in FAMILIES:
        try:
            checkpoint = family.read_checkpoint(values)
        except ValueError as error:
            problem = f"has an unsupported architecture: {error}"
            raise WeightsError(
                "source", source, "convert VideoCrafter2's model.ckpt", problem=problem
            ) from None
        if checkpoint is not None:
            return _plan_checkpoint(source, family, checkpoint, values, donor, name=name)
    problem = f"has tensors of unknown names, such as {next(iter(values))}"
    raise WeightsError("source", source, "convert VideoCrafter2's model.ckpt", problem=problem)


def _plan_checkpoint(
    source: Path,
    family: Family,
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    donor: Path | None,
    *,
    name: str,
) -> FolderPlan:
    """Plan all networks from one checkpoint; the tokenizer comes from the donor."""
    if checkpoint.faults:
        problem = f"is not a complete checkpoint: {listed(checkpoint.faults)}"
        raise WeightsError("source", source, "fetch the file again", problem=problem)
    plan = FolderPlan(family)
    for part in checkpoint.parts:
        plan.jsons[f"{part.name}/config.json"] = part.config
        plan.weights[plan.weight_file(part.name)] = _from_checkpoint(part, tensors)
    plan.jsons[SCHEDULE_FILE] = checkpoint.schedule
    plan.jsons["card.json"] = {"name": name, **checkpoint.card}
    if donor is None or not (donor / "tokenizer").is_dir():
        problem = "has no tokenizer" if donor is None else f"has no tokenizer, and neither has {donor}"
        raise WeightsError("source", source, _donor_remedy(family), problem=problem)
    text = next(part for part in checkpoint.parts if part.name == "text_encoder")
    _pad_with(plan, donor / "tokenizer", checkpoint.pad_token_id, vocabulary=text.config["vocab_size"])
    return plan


def _plan_originals(source: Path, donor: Path | None, *, name: str) -> FolderPlan | None:
    """Plan networks in their authors' layout, each in its own files; other parts come from the donor.

    source: one file, or a folder of them. Returns None if there is no such network.
    """
    found = find_originals(source)
    if not found:
        return None
    plan, folders = FolderPlan(found[0].family), dict[str, Path]()
    for original in found:
        plan.jsons[f"{original.part.name}/config.json"] = original.part.config
        plan.weights[plan.weight_file(original.part.name)] = _from_original(original)
    own_tokenizer = source / plan.family.original_tokenizer
    if plan.family.original_tokenizer and own_tokenizer.is_dir():
        folders["tokenizer"] = own_tokenizer
    if donor is None or not (donor / "scheduler").is_dir():
        plan.jsons[SCHEDULE_FILE] = plan.family.published_files["scheduler"]
    _complete(plan, source, folders, donor)
    _check_plan(plan, source, folders)
    plan.jsons["card.json"] = {"name": name}
    return plan


def _from_original(original: OriginalPart) -> Weights:
    return Weights(dict(original.layout), original.tensors)


def _from_checkpoint(part: CheckpointPart, tensors: Mapping[str, Tensor]) -> Weights:
    layout = {name: (tensors[source.name].dtype, part.shapes[name]) for name, source in part.sources.items()}
    return Weights(layout, lambda: part.tensors(tensors))


def _plan_distillation(
    source: Path, factors: Sequence[Tensor], base: Path | None, *, name: str
) -> FolderPlan:
    """Plan the model that low-rank factors were trained on, with the factors merged into its denoiser."""
    if base is None:
        remedy = "add --complete-from videocrafter2, the model it was trained on"
        raise WeightsError("source", source, remedy, problem="is a LoRA, not a model")
    family = model_family(base, field="complete_from")
    plan = FolderPlan(family)
    folders = {part: base / part for part in parts_of(family) if (base / part).is_dir()}
    _complete(plan, source, folders, None)
    _check_plan(plan, source, folders)
    config_file, weight_file = f"{family.denoiser}/config.json", plan.weight_file(family.denoiser)
    distilled = family.read_distillation(factors, plan.jsons[config_file])
    if distilled.faults:
        problem = f"is not a LoRA of T2V-Turbo for {base}: {listed(distilled.faults)}"
        raise WeightsError("source", source, "use the model it was trained on", problem=problem)
    original = plan.weights[weight_file]
    layout = original.layout | {
        key: (torch.float32, tuple(tensor.shape)) for key, tensor in distilled.new.items()
    }

    def merged() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in itertools.chain(original.tensors(), distilled.new.items()):
            yield key, changed(key, tensor, [distilled.change])

    plan.weights[weight_file] = Weights(layout, merged)
    plan.jsons[config_file] = distilled.config
    schedule = read_json(folders["scheduler"] / SCHEDULE)
    plan.copies.pop(SCHEDULE_FILE)
    plan.jsons[SCHEDULE_FILE] = {**schedule, **distilled.schedule}
    plan.jsons["card.json"] = own_card(base) | {"name": name, **distilled.card}
    return plan


def _pad_with(plan: FolderPlan, folder: Path, pad_token_id: int, *, vocabulary: int) -> None:
    """Plan the tokenizer in `folder`, changed to pad texts with another token."""
    tokenizer = plan.family.load_tokenizer(folder, length=TEXT_LENGTH)
    if tokenizer.vocabulary_size > vocabulary:
        problem = f"has {tokenizer.vocabulary_size} tokens, the text encoder {vocabulary}"
        raise WeightsError("complete_from", folder, "use CLIP's own tokenizer", problem=problem)
    _copy_files(plan, "tokenizer", folder)
    padding = {"pad_token": tokenizer.token(pad_token_id)}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if plan.copies.pop(f"tokenizer/{name}", None) is not None or name == "tokenizer_config.json":
            original = read_json(folder / name) if (folder / name).exists() else {}
            plan.jsons[f"tokenizer/{name}"] = original | padding


def _complete(plan: FolderPlan, source: Path, folders: dict[str, Path], donor: Path | None) -> None:
    """Plan all parts, the missing ones from the donor; add the folders that were used to `folders`."""
    for part in parts_of(plan.family):
        if f"{part}/config.json" in plan.jsons or f"{part}/{SCHEDULE}" in plan.jsons:
            continue
        if part not in folders and donor is not None and (donor / part).is_dir():
            folders[part] = donor / part
        if part not in folders:
            raise WeightsError("source", source, _donor_remedy(plan.family), problem=f"has no {part}")
        network = plan.family.networks.get(part)
        if network is not None:
            weights = _from_files(network, folders[part])
            config = read_json(folders[part] / "config.json")
            plan.jsons[f"{part}/config.json"] = {**config, **network.implied(weights.layout)}
            plan.weights[plan.weight_file(part)] = weights
        else:
            _copy_files(plan, part, folders[part])


def _donor_remedy(family: Family) -> str:
    whole = next(name for name, model in family.published.items() if model.complete_from is None)
    return f"add --complete-from with a model that has one, such as {whole}"


def _from_files(network: Network, folder: Path) -> Weights:
    """Return the weights of one part from safetensors or pickled files; in full precision if both exist."""
    if pickles := find_pickles(folder):
        return _from_pickles(network, pickles)
    entries = find_weights(folder, network.stem, prefer_fp16=False)
    sources = {parameter: name for name in entries if (parameter := network.rename(name)) is not None}
    for name, entry in entries.items():
        if entry.dtype not in WEIGHT_TYPES:
            problem = f"has {name} as {entry.dtype}"
            raise WeightsError("source", entry.path, f"use {', '.join(WEIGHT_TYPES)}", problem=problem)
    layout = {
        parameter: (TORCH_TYPES[entries[name].dtype], entries[name].shape)
        for parameter, name in sources.items()
    }

    def read() -> Iterator[tuple[str, Tensor]]:
        for parameter, name in sources.items():
            with safe_open(entries[name].path, framework="pt", device="cpu") as file:
                yield parameter, file.get_tensor(name)

    as_named = all(parameter == name for parameter, name in sources.items()) and len(sources) == len(entries)
    return Weights(layout, read, {name: entry.path for name, entry in entries.items()} if as_named else {})


def _from_pickles(network: Network, pickles: Sequence[Path]) -> Weights:
    values: dict[str, Tensor] = {}
    for path in pickles:
        tensors = read_pickle(path)
        if isinstance(tensors, list):
            problem = "is a list of tensors without names"
            raise WeightsError("source", path, "use a file of named tensors", problem=problem)
        values |= tensors
    named = {
        parameter: tensor
        for name, tensor in values.items()
        if (parameter := network.rename(name)) is not None
    }
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in named.items()}
    return Weights(layout, lambda: iter(named.items()))


def _copy_files(plan: FolderPlan, part: str, folder: Path) -> None:
    for path in sorted(folder.glob(FILES_OF[part])):
        if path.is_file():
            plan.copies[f"{part}/{path.name}"] = path


def _check_plan(plan: FolderPlan, source: Path, folders: Mapping[str, Path]) -> None:
    """Raise WeightsError if weights do not fit their config.json, parts do not fit together, or a file is missing."""
    configs: dict[str, Any] = {}
    for part, network in plan.family.networks.items():
        config = parse_values(
            plan.jsons[f"{part}/config.json"], network.read_config, folders.get(part, source)
        )
        with torch.device("meta"):
            module = network.build(config)
        layout = plan.weights[plan.weight_file(part)].layout
        check_fit(module, {name: shape for name, (_, shape) in layout.items()}, folders.get(part, source))
        configs[part] = config
    plan.family.check_parts(configs, source)
    plan.family.load_tokenizer(folders["tokenizer"], length=TEXT_LENGTH)
    if SCHEDULE_FILE not in plan.jsons:
        read_json(folders["scheduler"] / SCHEDULE)


# ---- writing ----


def _write(plan: FolderPlan, target: Path, dtype: torch.dtype | None, *, link: bool) -> None:
    """Write into a folder next to the target, which is renamed at the end. link: see `convert`. Raises OutputError."""
    unfinished = temporary(target)
    index = {"_class_name": plan.family.pipeline_class}
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        for name, values in (plan.jsons | {"model_index.json": index}).items():
            path = _with_folder(unfinished / name)
            path.write_text(to_json(values, indent=2) + "\n", encoding="utf-8")
        for name, origin in plan.copies.items():
            shutil.copyfile(origin, _with_folder(unfinished / name))
        for name, weights in plan.weights.items():
            if link and dtype is None and weights.files:
                _link(weights.files, unfinished / name)
                continue
            layout = {key: (dtype or own, shape) for key, (own, shape) in weights.layout.items()}
            write_safetensors(unfinished / name, layout, weights.tensors())
        unfinished.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _link(files: Mapping[str, Path], path: Path) -> None:
    """Link the weight files of a part.

    files: the file of each tensor. path: the name of a single file; shards have similar names, and an index.
    """
    names = dict.fromkeys(files.values(), path.name)
    if len(names) > 1:
        names = {file: f"{path.stem}-{number:05}.safetensors" for number, file in enumerate(names, start=1)}
        index = {"weight_map": {tensor: names[file] for tensor, file in files.items()}}
        path.with_name(f"{path.name}.index.json").write_text(
            to_json(index, indent=2) + "\n", encoding="utf-8"
        )
    for file, name in names.items():
        try:
            # os.link does not follow symbolic links
            os.link(file.resolve(), path.with_name(name))
        except OSError:
            # the file system has no hard links
            shutil.copyfile(file, path.with_name(name))


def _with_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
