"""LoRA files and their relatives, merged into the weights of a model while these are loaded.

A file is read in two steps, before any weight: its tensors are assigned to modules by their names (lora_names.py), and
the factors of each module to a formula (models/low_rank.py) whose result must have the shape of the parameter.
Everything in a file is merged; a file with anything that cannot be merged is rejected.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vinfinity.errors import WeightsError
from vinfinity.models.low_rank import DORA, FORMULAS, Shape, parameter_change
from vinfinity.system.safetensors import TensorEntry, read_json, shape_text
from vinfinity.weights.card import ModelCard
from vinfinity.weights.dtypes import WEIGHT_TYPES
from vinfinity.weights.load import empty_network, listed
from vinfinity.weights.lora_config import AdapterConfig, read_config, read_metadata
from vinfinity.weights.lora_names import Target, find_module, foreign_kind, make_target, read_role
from vinfinity.weights.named_files import find_lora, split_weight
from vinfinity.weights.tensor_files import TensorFile, read_tensor_file

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraChange:
    """The change of one parameter by a file. keys: its tensors, by their role in the formula. scale: alpha / rank."""

    formula: str
    keys: Mapping[str, str]
    scale: float


@dataclass(frozen=True)
class Lora:
    """A file of changes to the networks of a model.

    weight: a factor for all of its changes. changes: what it does to each parameter, by network and parameter. config:
    the adapter_config.json that scales it, if there is one.
    """

    file: TensorFile
    weight: float
    changes: Mapping[str, Mapping[str, tuple[LoraChange, ...]]] = field(repr=False)
    config: Path | None = None

    @property
    def path(self) -> Path:
        """The file of the factors."""
        return self.file.path

    @property
    def files(self) -> list[Path]:
        """All files that it is read from."""
        return [self.path] if self.config is None else [self.path, self.config]

    def layers(self) -> str:
        """Format the number of layers that it changes, by network."""
        counts = {
            network: len({parameter.rpartition(".")[0] for parameter in changes})
            for network, changes in self.changes.items()
        }
        return ", ".join(f"{count} layers of {network}" for network, count in counts.items())


@dataclass(frozen=True)
class OpenLora:
    """The part of a LoRA that changes one network, with its file open."""

    lora: Lora
    network: str
    read: Callable[[str], Tensor]

    def addition(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return the change to add to a parameter, in fp32; None if there is none."""
        total = None
        for change in self.lora.changes.get(self.network, {}).get(name, ()):
            factors = {role: self.read(key).float() for role, key in change.keys.items()}
            one = parameter_change(change.formula, factors, tensor.float(), change.scale)
            total = one if total is None else total + one
        return None if total is None else total * self.lora.weight


@contextlib.contextmanager
def open_loras(loras: Sequence[Lora], network: str) -> Iterator[list[OpenLora]]:
    """Open the LoRAs that change a network until the block ends. Raises WeightsError if a file cannot be read."""
    with contextlib.ExitStack() as files:
        yield [
            OpenLora(lora, network, files.enter_context(lora.file.open()))
            for lora in loras
            if network in lora.changes
        ]


def lora_targets(card: ModelCard) -> tuple[Target, ...]:
    """Return the networks of a model that LoRAs can change."""
    targets = []
    for name, network in card.family.networks.items():
        if network.lora_prefixes:
            module = empty_network(network, card.folder / name)
            shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
            targets.append(make_target(name, network, module.config, shapes))
    return tuple(targets)


def read_lora(text: str, targets: Sequence[Target]) -> Lora:
    """Return the changes in `FILE[:WEIGHT]` for the networks of a model, without reading the factors.

    Raises InputError if the file does not exist, or WeightsError if it holds anything that cannot be merged.
    """
    named, weight = split_weight(text)
    path = find_lora(named)
    file = read_tensor_file(path, field="lora")
    settings, config = _settings(file)
    modules = _modules(file, targets)
    changes = _changes(file, modules, settings)
    _check_shapes(file, changes, {target.network: target.shapes for target in targets})
    return Lora(file, weight, changes, config)


@dataclass(frozen=True)
class Factors:
    """The tensors of a file for one module. name: the module's name in the file. keys: the tensors by role."""

    name: str
    keys: dict[str, str]


# By network and module of the model.
Modules = dict[tuple[str, str], Factors]


def _modules(file: TensorFile, targets: Sequence[Target]) -> Modules:
    """Return the tensors of a file by the module that they change. Raises WeightsError if one changes none."""
    modules: Modules = {}
    unknown: list[str] = []
    elsewhere: dict[str, str] = {}
    twice: list[str] = []
    for key in file.entries:
        role = read_role(key, targets)
        if role is None:
            unknown.append(key)
        elif (found := find_module(role, targets)) is None:
            elsewhere[key] = role.module
        else:
            keys = modules.setdefault(found, Factors(role.module, {})).keys
            if role.name in keys:
                twice.append(f"{keys[role.name]} and {key} are the same factor")
            keys[role.name] = key
    if foreign := foreign_kind([*unknown, *elsewhere], targets):
        key, kind = foreign
        problem = f"holds {kind} ({key}), which cannot be merged into this model"
        raise WeightsError(
            "lora", file.path, "use a LoRA, LoHa or LoKr trained on this model", problem=problem
        )
    kinds = {role for factors in modules.values() for role in factors.keys}
    if unknown or twice or (not elsewhere and kinds <= {"alpha", "weight", "bias"}):
        faults = [*(f"unexpected {key}" for key in unknown), *twice]
        problem = f"is not a LoRA of a known kind: {listed(faults) or 'it has no factors'}"
        raise WeightsError("lora", file.path, "use a LoRA, LoHa or LoKr", problem=problem)
    if elsewhere:
        faults = [f"no {module} in this model" for module in dict.fromkeys(elsewhere.values())]
        raise _for_another_model(file.path, faults)
    _check_types(file, modules)
    return modules


def _check_types(file: TensorFile, modules: Modules) -> None:
    """Raise WeightsError if a factor has a type that weights cannot have."""
    types = [
        f"{key} is {file.entries[key].dtype}"
        for factors in modules.values()
        for role, key in factors.keys.items()
        if role != "alpha" and file.entries[key].dtype not in WEIGHT_TYPES
    ]
    if types:
        remedy = f"use a LoRA in {', '.join(WEIGHT_TYPES)}"
        raise WeightsError(
            "lora", file.path, remedy, problem=f"has factors of an unsupported type: {listed(types)}"
        )


def _for_another_model(path: Path, faults: Sequence[str]) -> WeightsError:
    remedy = "use a LoRA that was trained on this model"
    return WeightsError("lora", path, remedy, problem=f"is for another model: {listed(faults)}")


def _changes(
    file: TensorFile, modules: Modules, settings: Mapping[str, AdapterConfig]
) -> dict[str, dict[str, tuple[LoraChange, ...]]]:
    """Return what the file does to each parameter, by network and parameter. Raises WeightsError.

    settings: the settings that come with the file, by network, or "" for all.
    """
    alphas = _alphas(file, modules)
    changes: dict[str, dict[str, tuple[LoraChange, ...]]] = {}
    faults: list[str] = []
    for (network, module), factors in modules.items():
        config = settings.get(network, settings.get("", AdapterConfig()))
        made, missing = _module_changes(file, factors, config, alphas.get((network, module)))
        faults += missing
        for name, change in made:
            # the module "" is the network itself
            parameter = f"{module}.{name}".removeprefix(".")
            parameters = changes.setdefault(network, {})
            parameters[parameter] = (*parameters.get(parameter, ()), change)
    if faults:
        problem = f"is not a complete LoRA: {listed(faults)}"
        raise WeightsError("lora", file.path, "fetch or save the file again", problem=problem)
    return changes


def _module_changes(
    file: TensorFile, factors: Factors, config: AdapterConfig, alpha: float | None
) -> tuple[list[tuple[str, LoraChange]], list[str]]:
    """Return the changes of a module's parameters, with their names inside it, and what is missing or unexpected."""
    changes, faults = [], []
    left = set(factors.keys) - {"alpha"}
    rank = None
    for name, formula in FORMULAS.items():
        used = formula.complete(left)
        if used is None:
            continue
        left -= set(used)
        shown = next((file.entries[factors.keys[role]].shape for role in formula.ranks if role in used), None)
        rank = shown[0] if shown else rank
        scale = config.scale(factors.name, rank=rank, alpha=alpha) if formula.scaled else 1.0
        change = LoraChange(name, {role: factors.keys[role] for role in used}, scale)
        changes.append((formula.parameter, change))
    if config.dora and "up" in factors.keys and not {*DORA} & {*factors.keys}:
        faults.append(f"missing the magnitudes of {factors.name} (use_dora)")
    if left:
        faults.append(f"missing the other factor of {factors.name} ({factors.keys[sorted(left)[0]]})")
    elif set(factors.keys) == {"alpha"}:
        faults.append(f"unexpected {factors.keys['alpha']}")
    return changes, faults


def _settings(file: TensorFile) -> tuple[dict[str, AdapterConfig], Path | None]:
    """Return the settings that come with a file, by network or "" for all, and the file next to it that holds them.

    diffusers writes them into the metadata, PEFT into an adapter_config.json next to the file. Raises WeightsError.
    """
    beside = file.path.with_name(CONFIG)
    source = file.path
    try:
        if METADATA in file.metadata:
            return read_metadata(file.metadata[METADATA]), None
        # files of kohya and LyCORIS contain all their settings, and the adapter_config.json may be another LoRA's
        if not (beside.is_file() or beside.is_symlink()) or any(
            key.startswith(("lora_", "lycoris_")) for key in file.entries
        ):
            return {}, None
        source = beside
        return {"": read_config(read_json(beside, field="lora"))}, beside
    except ValueError as error:
        remedy = "use a plain LoRA, or merge it into the model with the library that made it"
        raise WeightsError("lora", source, remedy, problem=f"{error}") from None


def _alphas(file: TensorFile, modules: Modules) -> dict[tuple[str, str], float]:
    """Return the alphas that are tensors of the file. Raises WeightsError if one is not a finite number."""
    alphas = {}
    with file.open() as read:
        for module, factors in modules.items():
            if (key := factors.keys.get("alpha")) is None:
                continue
            value = read(key)
            if value.numel() != 1 or not value.isfinite().all():
                remedy = "fetch or save the file again"
                raise WeightsError("lora", file.path, remedy, problem=f"has {key}, which is not a number")
            alphas[module] = float(value)
    return alphas


def _check_shapes(
    file: TensorFile,
    changes: Mapping[str, Mapping[str, tuple[LoraChange, ...]]],
    shapes: Mapping[str, Mapping[str, Shape]],
) -> None:
    """Raise WeightsError if a change does not fit the parameter of the model."""
    faults = []
    for network, parameters in changes.items():
        for name, own in parameters.items():
            shape = shapes[network].get(name)
            if shape is None:
                faults.append(f"no {name} in this model")
                continue
            for change in own:
                factors = {role: file.entries[key] for role, key in change.keys.items()}
                if not _fits(change, factors, shape):
                    listing = " and ".join(shape_text(entry.shape) for entry in factors.values())
                    faults.append(f"{name} is {shape_text(shape)}, the factors {listing}")
    if faults:
        raise _for_another_model(file.path, faults)


def _fits(change: LoraChange, factors: Mapping[str, TensorEntry], shape: Shape) -> bool:
    """Return whether a change has the shape of its parameter."""
    if any(0 in entry.shape for entry in factors.values()):
        return False
    tensors = {role: torch.empty(entry.shape, device="meta") for role, entry in factors.items()}
    try:
        parameter_change(change.formula, tensors, torch.empty(shape, device="meta"), change.scale)
    except (ValueError, RuntimeError, IndexError):
        return False
    return True
