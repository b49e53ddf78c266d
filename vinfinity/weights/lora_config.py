"""The settings that come with an adapter: PEFT's adapter_config.json, or the metadata that diffusers writes."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vinfinity.system.fields import OFF_VALUES

PEFT_TYPES = ("LORA", "LOHA", "LOKR")

# Settings that are used.
USED = frozenset(
    {"peft_type", "r", "lora_alpha", "alpha", "alpha_pattern", "rank_pattern", "use_dora", "use_rslora"}
)
# Settings that do not change what the tensors mean: they concern the training, or the tensors show them.
# fan_in_fan_out concerns a kind of layer that these models do not have.
IGNORED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "decompose_both",
        "decompose_factor",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "module_dropout",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "rank_dropout",
        "rank_dropout_scale",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_effective_conv2d",
        "velora_config",
    }
)
# Initialisations of factors that leave the model's own weights alone; others subtract the factors from them.
INITIALISATIONS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """How the factors of an adapter are scaled.

    alpha: None stands for the rank, which is a scale of 1. rank: the rank of LoKr, whose tensors may not show it.
    alpha_pattern, rank_pattern: exceptions by module, as regular expressions for the end of its name. root: whether
    alpha is divided by the rank's root (rsLoRA, Kalajdzievski 2023). dora: whether LoRA factors must have magnitudes.
    """

    alpha: float | None = None
    rank: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    root: bool = False
    dora: bool = False

    def scale(self, module: str, *, rank: int | None, alpha: float | None) -> float:
        """Return the factor of a module's change.

        module: its name in the file. rank: the rank that its tensors show, or None. alpha: the value of a tensor in the
        file, or None.
        """
        declared = _match(self.rank_pattern, module, self.rank)
        shown = declared if rank is None else rank
        if alpha is None:
            alpha = _match(self.alpha_pattern, module, self.alpha)
        if not shown or alpha is None:
            return 1.0
        return alpha / (math.sqrt(shown) if self.root else shown)


def read_config(values: Mapping[str, Any]) -> AdapterConfig:
    """Read a parsed adapter_config.json. Raises ValueError naming a setting that changes the meaning of the tensors."""
    kind = values.get("peft_type") or "LORA"
    if kind not in PEFT_TYPES:
        raise ValueError(f"peft_type: {kind} is not one of {', '.join(PEFT_TYPES)}")
    start = str(values.get("init_lora_weights", True)).lower()
    if start not in INITIALISATIONS:
        raise ValueError(
            f"init_lora_weights: {start} changed the model's own weights before training (PEFT's save_pretrained turns "
            "such an adapter into a plain LoRA with path_initial_model_for_weight_conversion)"
        )
    for key, value in values.items():
        if key not in USED | IGNORED | {"init_lora_weights"} and value not in OFF_VALUES:
            raise ValueError(f"{key}: {value!r} is not supported")
    return AdapterConfig(
        alpha=_number(values, "lora_alpha", "alpha"),
        rank=_number(values, "r"),
        alpha_pattern=_pattern(values, "alpha_pattern"),
        rank_pattern=_pattern(values, "rank_pattern"),
        root=bool(values.get("use_rslora")),
        dora=bool(values.get("use_dora")),
    )


def read_metadata(text: str) -> dict[str, AdapterConfig]:
    """Read the metadata of a file that diffusers wrote: settings by network, "" for all. Raises ValueError."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"lora_adapter_metadata: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError("lora_adapter_metadata: is not a JSON object")
    by_network: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        network, _, name = key.rpartition(".")
        by_network.setdefault(network, {})[name] = value
    return {network: read_config(settings) for network, settings in by_network.items()}


def _number(values: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = values.get(name)
        if value is not None:
            return _checked(name, value)
    return None


def _pattern(values: Mapping[str, Any], name: str) -> dict[str, float]:
    pattern = values.get(name) or {}
    if not isinstance(pattern, Mapping):
        raise ValueError(f"{name}: {pattern!r} is not an object")
    return {key: _checked(f"{name}.{key}", value) for key, value in pattern.items()}


def _checked(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: {value!r} is not a number")
    return float(value)


def _match(pattern: Mapping[str, float], module: str, otherwise: float | None) -> float | None:
    """Return the value of the first pattern that fits the end of a module's name, as PEFT matches them."""
    for key, value in pattern.items():
        try:
            fits = re.match(rf"(.*\.)?({key})$", module) is not None
        except re.error:
            fits = module.endswith(key)
        if fits:
            return value
    return otherwise
