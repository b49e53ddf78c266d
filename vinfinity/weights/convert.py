"""Published weights of other layouts to a model's folder: everything is checked before the first byte is written.

What is read: VideoCrafter2's `model.ckpt`, diffusers folders with `.bin` or `.pth` files, folders that hold only a
UNet, and T2V-Turbo's `unet_lora.pt` over the model it was trained on. The folder appears whole or not at all.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vinfinity.errors import InputError, OutputError, WeightsError
from vinfinity.models.unet3d.tokenizer import load_tokenizer
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.system.safetensors import find_pickles, find_weights, read_json
from vinfinity.weights.card import PARTS, find_model
from vinfinity.weights.load import KINDS, check_fit, check_widths, empty_network, listed
from vinfinity.weights.lora import merge_turbo, turbo_faults, turbo_order
from vinfinity.weights.lvdm import UNET, Part, is_lvdm, lvdm_faults, lvdm_parts, take, unet_table
from vinfinity.weights.pickles import PICKLES, read_pickle
from vinfinity.weights.registry import GUIDANCE_WIDTH, TURBO_CARD, TURBO_SCHEDULE
from vinfinity.weights.write import write_safetensors

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
FILES_OF = {"tokenizer": "*.*", "scheduler": "scheduler_config.json"}
TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

# VideoCrafter2 as its authors train and sample it (configs/inference_t2v_512_v2.0.yaml, scripts/run_text2video.sh).
LVDM_SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
LVDM_CARD = {"trained_frames": 16, "size": "512x320", "fps": 24, "steps": 50, "guidance": 12.0}


@dataclass(frozen=True)
class Weights:
    """A weight file to write. tensors: opened when it is written, in the order of `layout`."""

    layout: Layout
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]


@dataclass(frozen=True)
class Plan:
    """A model's folder before it is written: paths inside it, and what goes there."""

    weights: dict[str, Weights] = field(default_factory=dict)
    jsons: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)


def convert(
    source: Path,
    target: Path,
    *,
    complete_from: str | None = None,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes the model in `source`, a file or a folder, to the new folder `target`, and returns it.

    complete_from: the model (a name or a folder) whose parts are taken where `source` has none, and over which a LoRA
    was trained. dtype: of the weights, None for that of the source. extra: more JSON files, by name. Raises InputError
    where the source is not usable, OutputError where writing fails.
    """
    if target.exists():
        raise InputError("target", target, "name a folder that does not exist yet", problem="exists already")
    if not source.exists():
        raise InputError("source", source, "check the path", problem="does not exist")
    donor = None if complete_from is None else find_model(complete_from)
    plan = _plan_folder(source, donor) if source.is_dir() else _plan_file(source, donor, name=target.name)
    plan.jsons.update(extra or {})
    for name in extra or {}:
        plan.copies.pop(name, None)
    _write(plan, target, dtype)
    return target


# ---- what there is ----


def _plan_folder(source: Path, donor: Path | None) -> Plan:
    """A diffusers folder, or one with a UNet only, in which every weight file is to be safetensors."""
    alone = (source / "config.json").exists() and not (source / "unet").is_dir()
    folders = {part: source / part for part in PARTS if (source / part).is_dir()}
    if alone:
        kind = str(read_json(source / "config.json").get("_class_name", ""))
        if not kind.startswith("UNet3DCondition"):
            remedy = "give a model's folder, or that of a UNet3DConditionModel"
            raise WeightsError("source", source, remedy, problem=f"holds a {kind or 'network of no kind'}")
        folders["unet"] = source
    if "unet" not in folders:
        remedy = "give a folder in diffusers' layout or VideoCrafter2's model.ckpt"
        raise WeightsError("source", source, remedy, problem="holds no unet")
    plan = Plan()
    _complete(plan, source, folders, donor)
    card = next(
        (root / "card.json" for root in (source, donor) if root and (root / "card.json").exists()), None
    )
    if card is not None:
        plan.copies["card.json"] = card
    _check_whole(plan, source, folders)
    return plan


def _plan_file(source: Path, donor: Path | None, *, name: str) -> Plan:
    if source.suffix == ".safetensors" or source.suffix not in PICKLES:
        remedy = f"give a folder, or a file that ends in {', '.join(PICKLES)}"
        raise InputError("source", source, remedy, problem="is no file of a layout that is converted")
    values = read_pickle(source)
    if isinstance(values, list):
        return _plan_turbo(source, values, donor, name=name)
    if not is_lvdm(values):
        problem = f"holds names such as {next(iter(values))}"
        raise WeightsError("source", source, "convert VideoCrafter2's model.ckpt", problem=problem)
    return _plan_lvdm(source, values, donor, name=name)


def _plan_lvdm(source: Path, tensors: Mapping[str, Tensor], donor: Path | None, *, name: str) -> Plan:
    """UNet, autoencoder and text encoder out of one checkpoint; it holds no tokenizer."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        parts = lvdm_parts(shapes)
        schedule = latent_scale(tensors)
    except ValueError as error:
        raise WeightsError(
            "source",
            source,
            "convert VideoCrafter2's model.ckpt",
            problem=f"is of an unknown architecture: {error}",
        ) from None
    if faults := lvdm_faults(parts, shapes):
        raise WeightsError(
            "source", source, "fetch the file again", problem=f"is no whole checkpoint: {listed(faults)}"
        )
    plan = Plan()
    for part in parts:
        plan.jsons[f"{part.name}/config.json"] = part.config
        plan.weights[f"{part.name}/{part.stem}.safetensors"] = _from_lvdm(part, tensors)
    plan.jsons["scheduler/scheduler_config.json"] = LVDM_SCHEDULE | schedule
    sampler = "videocrafter2" if schedule else "ddim"
    plan.jsons["card.json"] = {"name": name, **LVDM_CARD, "sampler": sampler}
    if donor is None or not (donor / "tokenizer").is_dir():
        problem = "holds no tokenizer" if donor is None else f"holds no tokenizer, and nor does {donor}"
        remedy = "add --complete-from MODEL with one that has, such as zeroscope"
        raise WeightsError("source", source, remedy, problem=problem)
    text = next(part for part in parts if part.name == "text_encoder")
    _openclip_tokenizer(plan, donor / "tokenizer", vocabulary=text.config["vocab_size"])
    return plan


def _plan_turbo(source: Path, factors: Sequence[Tensor], base: Path | None, *, name: str) -> Plan:
    """T2V-Turbo: the model it was trained on with its LoRA merged, and guidance as an input.

    The authors' code leaves the projection of that input at random values before the LoRA is added, other ones each
    time (predict.py); here it starts from zero, their mean.
    """
    if base is None:
        remedy = "add --complete-from videocrafter2, the model it was trained on"
        raise WeightsError("source", source, remedy, problem="is a LoRA and no model")
    plan = Plan()
    folders = {part: base / part for part in PARTS if (base / part).is_dir()}
    _complete(plan, source, folders, None)
    _check_whole(plan, source, folders)
    values = dict(plan.jsons["unet/config.json"]) | {"time_cond_proj_dim": GUIDANCE_WIDTH}
    with torch.device("meta"):
        unet = UNet(config := UNetConfig.from_dict(values))
    shapes = {key: tuple(tensor.shape) for key, tensor in unet.state_dict().items()}
    sources = {
        key: piece.source.removeprefix(UNET) for key, piece in unet_table(config, list(shapes)).items()
    }
    order = turbo_order(sources, shapes)
    if faults := turbo_faults(factors, order, shapes):
        problem = f"is no LoRA of T2V-Turbo for {base}: {listed(faults)}"
        raise WeightsError("source", source, "give the model it was trained on", problem=problem)
    pairs = {key: (factors[2 * i], factors[2 * i + 1]) for i, key in enumerate(order)}
    file = f"unet/{KINDS['unet'].stem}.safetensors"
    old = plan.weights[file]
    fresh = {"time_embedding.cond_proj.weight": torch.zeros(shapes["time_embedding.cond_proj.weight"])}
    layout = old.layout | {key: (torch.float32, shapes[key]) for key in fresh}

    def merged() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in itertools.chain(old.tensors(), fresh.items()):
            yield key, merge_turbo(key, tensor, pairs)

    plan.weights[file] = Weights(layout, merged)
    plan.jsons["unet/config.json"] = values
    schedule = read_json(folders["scheduler"] / "scheduler_config.json")
    plan.copies.pop("scheduler/scheduler_config.json")
    plan.jsons["scheduler/scheduler_config.json"] = schedule | TURBO_SCHEDULE
    card = read_json(base / "card.json") if (base / "card.json").exists() else {}
    plan.jsons["card.json"] = card | {"name": name, **TURBO_CARD}
    return plan


def latent_scale(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The schedule that scales the clean latents, as settings of a scheduler; empty where the file has none.

    Raises ValueError where its factors are not a straight line from 1 and a constant from there on (PAPER.md).
    """
    if "scale_arr" not in tensors:
        return {}
    factors = tensors["scale_arr"].double().numpy()
    end = float(np.float32(factors[-1]))
    steps = int(np.argmax(np.isclose(factors, end, atol=1e-6))) + 1
    line = np.concatenate([np.linspace(1.0, end, steps), np.full(len(factors) - steps, end)])
    if np.abs(line - factors).max() > 1e-4:
        raise ValueError("scale_arr: is no straight line followed by a constant")
    return {"latent_scale": round(end, 6), "latent_scale_steps": steps}


def _from_lvdm(part: Part, tensors: Mapping[str, Tensor]) -> Weights:
    layout = {name: (tensors[piece.source].dtype, part.shapes[name]) for name, piece in part.pieces.items()}
    return Weights(layout, lambda: take(part, tensors))


def _openclip_tokenizer(plan: Plan, folder: Path, *, vocabulary: int) -> None:
    """CLIP's tokenizer as OpenCLIP uses it: texts are filled up with token 0, whatever the folder says."""
    tokenizer = load_tokenizer(folder, length=77).tokenizer
    if tokenizer.get_vocab_size() > vocabulary:
        problem = f"knows {tokenizer.get_vocab_size()} tokens, the text encoder {vocabulary}"
        raise WeightsError("complete_from", folder, "take CLIP's own tokenizer", problem=problem)
    _copy_files(plan, "tokenizer", folder)
    changed = {"pad_token": tokenizer.id_to_token(0)}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if plan.copies.pop(f"tokenizer/{name}", None) is not None or name == "tokenizer_config.json":
            old = read_json(folder / name) if (folder / name).exists() else {}
            plan.jsons[f"tokenizer/{name}"] = old | changed


def _complete(plan: Plan, source: Path, folders: dict[str, Path], donor: Path | None) -> None:
    """Plans all parts, those that are missing from the donor; the folders that were used end up in `folders`."""
    for part in PARTS:
        if part not in folders and donor is not None and (donor / part).is_dir():
            folders[part] = donor / part
        if part not in folders:
            remedy = "add --complete-from MODEL with one that has, such as zeroscope"
            raise WeightsError("source", source, remedy, problem=f"holds no {part}")
        if part in KINDS:
            plan.jsons[f"{part}/config.json"] = read_json(folders[part] / "config.json")
            stem = KINDS[part].stem
            plan.weights[f"{part}/{stem}.safetensors"] = _from_files(part, folders[part])
        else:
            _copy_files(plan, part, folders[part])


def _from_files(part: str, folder: Path) -> Weights:
    """The weights of one part from safetensors or pickled files; in full precision where there are both."""
    rename = KINDS[part].rename
    if pickles := find_pickles(folder):
        values: dict[str, Tensor] = {}
        for path in pickles:
            some = read_pickle(path)
            if isinstance(some, list):
                raise WeightsError(
                    "source", path, "only named tensors are read", problem="holds an unnamed list"
                )
            values |= some
        named = {target: tensor for name, tensor in values.items() if (target := rename(name)) is not None}
        layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in named.items()}
        return Weights(layout, lambda: iter(named.items()))
    entries = find_weights(folder, KINDS[part].stem, half=False)
    sources = {target: name for name in entries if (target := rename(name)) is not None}
    for name, entry in entries.items():
        if entry.dtype not in TORCH_TYPES:
            problem = f"holds {name} as {entry.dtype}"
            raise WeightsError("source", entry.path, f"use {', '.join(TORCH_TYPES)}", problem=problem)
    layout = {
        target: (TORCH_TYPES[entries[name].dtype], entries[name].shape) for target, name in sources.items()
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for target, name in sources.items():
            with safe_open(entries[name].path, framework="pt", device="cpu") as file:
                yield target, file.get_tensor(name)

    return Weights(layout, tensors)


def _copy_files(plan: Plan, part: str, folder: Path) -> None:
    for path in sorted(folder.glob(FILES_OF[part])):
        if path.is_file():
            plan.copies[f"{part}/{path.name}"] = path


def _check_whole(plan: Plan, source: Path, folders: Mapping[str, Path]) -> None:
    """Raises WeightsError where weights do not fit their config.json, parts not each other, or a file is missing."""
    networks = {part: empty_network(part, folders[part]) for part in KINDS}
    for part, network in networks.items():
        layout = plan.weights[f"{part}/{KINDS[part].stem}.safetensors"].layout
        check_fit(network, {name: shape for name, (_, shape) in layout.items()}, folders[part])
    check_widths(networks, source)
    load_tokenizer(folders["tokenizer"], length=77)
    read_json(folders["scheduler"] / "scheduler_config.json")


# ---- writing ----


def _write(plan: Plan, target: Path, dtype: torch.dtype | None) -> None:
    """Writes into a folder beside the target and renames it at the end. Raises OutputError."""
    unfinished = target.with_name(f".{target.name}.part")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        for name, values in (
            plan.jsons | {"model_index.json": {"_class_name": "TextToVideoSDPipeline"}}
        ).items():
            path = _place(unfinished, name)
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, origin in plan.copies.items():
            shutil.copyfile(origin, _place(unfinished, name))
        for name, weights in plan.weights.items():
            layout = {key: (dtype or own, shape) for key, (own, shape) in weights.layout.items()}
            write_safetensors(_place(unfinished, name), layout, weights.tensors())
        unfinished.rename(target)
    except OSError as error:
        raise OutputError(
            f"{target}: could not be written ({error.strerror}); free some space there"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
