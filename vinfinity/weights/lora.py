"""Low-rank additions to a UNet's weights (Hu et al. 2021), merged into them while they are loaded.

Files are named as PEFT and diffusers (old and new versions) name them: the name of a module, with or without a prefix
`unet.` or `base_model.model.`, then `lora_A` and `lora_B` (or `lora.down` and `lora.up`), and sometimes `alpha`.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vinfinity.errors import InputError, WeightsError
from vinfinity.models.low_rank import factors_fit, low_rank_product
from vinfinity.system.safetensors import TensorEntry, read_header, read_json, shape_text
from vinfinity.weights.load import listed
from vinfinity.weights.lora_argument import split_weight

PREFIXES = ("base_model.model.", "unet.")
FACTOR = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora_A|lora\.down|lora_down)|(?P<up>lora_B|lora\.up|lora_up))"
)


@dataclass(frozen=True)
class Pair:
    """One addition, up @ down * scale: the names of the factors in the file, and the scale (alpha / rank)."""

    down: str
    up: str
    scale: float


@dataclass(frozen=True)
class Lora:
    """A file of additions. weight: a factor for all of them. pairs: by the parameter that they are added to."""

    path: Path
    weight: float
    pairs: Mapping[str, Pair]
    entries: Mapping[str, TensorEntry] = field(repr=False)

    def add_to(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter with its addition, in fp32; the parameter itself if there is none."""
        if name not in self.pairs:
            return tensor
        pair = self.pairs[name]
        with safe_open(self.path, framework="pt", device="cpu") as file:
            down, up = (file.get_tensor(key).float() for key in (pair.down, pair.up))
        return tensor.float() + low_rank_product(up, down, tensor.shape) * (pair.scale * self.weight)


def read_lora(text: str) -> Lora:
    """The additions in `FILE[:WEIGHT]`, from the file's header alone.

    Raises InputError if the file does not exist, or has anything but complete pairs of factors.
    """
    path, weight = split_weight(text)
    if path.suffix != ".safetensors":
        remedy = "use a safetensors file; vinfinity models convert turns T2V-Turbo's into a model"
        raise InputError("lora", path, remedy, problem="does not end in .safetensors")
    if not os.path.isfile(path):
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise InputError("lora", path, "check the path", problem=problem)
    entries = read_header(path, field="lora")
    factors: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    faults = []
    for key in entries:
        name = _bare(key)
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha").removesuffix(".lora")] = key
        elif match := FACTOR.match(name):
            factors.setdefault(match["module"], {})["down" if match["down"] else "up"] = key
        else:
            faults.append(f"unexpected {key}")
    faults += [f"missing the other factor of {module}" for module, pair in factors.items() if len(pair) < 2]
    faults += [f"unexpected {key}" for module, key in alphas.items() if module not in factors]
    if faults or not factors:
        problem = f"is not a LoRA of diffusers or PEFT: {listed(faults) or 'it has no factors'}"
        raise WeightsError("lora", path, "use a file with their names", problem=problem)
    scales = _scales(
        path, {module: entries[pair["down"]].shape[0] for module, pair in factors.items()}, alphas
    )
    pairs = {
        f"{module}.weight": Pair(down=pair["down"], up=pair["up"], scale=scales[module])
        for module, pair in factors.items()
    }
    return Lora(path=path, weight=weight, pairs=pairs, entries=entries)


def check_lora(lora: Lora, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError if a LoRA adds to parameters that a network with these shapes does not have."""
    faults = []
    for name, pair in lora.pairs.items():
        down, up = lora.entries[pair.down].shape, lora.entries[pair.up].shape
        shape = shapes.get(name)
        if shape is None:
            faults.append(f"no {name.removesuffix('.weight')} in this model")
        elif not factors_fit(up, down, shape):
            faults.append(
                f"{name} is {shape_text(shape)}, the factors {shape_text(up)} and {shape_text(down)}"
            )
    if faults:
        problem = f"is for another model: {listed(faults)}"
        raise WeightsError("lora", lora.path, "use one that was trained on this model", problem=problem)


def _bare(key: str) -> str:
    """A key without the prefixes that name the network."""
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _scales(path: Path, ranks: Mapping[str, int], alphas: Mapping[str, str]) -> dict[str, float]:
    """alpha / rank of each module, 1 if no alpha is given.

    alpha is a tensor beside the factors, in the metadata that diffusers writes, or in PEFT's adapter_config.json.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        given = {module: float(file.get_tensor(key)) for module, key in alphas.items()}
        metadata = file.metadata() or {}
    config: dict[str, Any] = {}
    beside = path.with_name("adapter_config.json")
    if "lora_adapter_metadata" in metadata:
        values = json.loads(metadata["lora_adapter_metadata"])
        config = {key.removeprefix("unet."): value for key, value in values.items()}
    elif beside.exists():
        config = read_json(beside)
    if config.get("use_dora"):
        raise WeightsError("lora", path, "use a plain LoRA", problem="is a DoRA, which is not supported")
    patterns = {_bare(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
    scales = {}
    for module, rank in ranks.items():
        pattern = next(
            (patterns[key] for key in patterns if module == key or module.endswith(f".{key}")), None
        )
        alpha = given.get(module, pattern if pattern is not None else config.get("lora_alpha", rank))
        scales[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return scales
