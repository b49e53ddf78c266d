"""Low-rank additions to a UNet's weights (Hu et al. 2021), merged into them while they are loaded.

Files in the naming of PEFT and of diffusers, old and new: a module's name, in which `unet.` or `base_model.model.` may
come first, then `lora_A` and `lora_B` (or `lora.down` and `lora.up`), and sometimes its `alpha`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from vinfinity.errors import InputError, WeightsError
from vinfinity.system.safetensors import TensorEntry, read_header, read_json
from vinfinity.weights.load import listed
from vinfinity.weights.lvdm import shown

PREFIXES = ("base_model.model.", "unet.")
FACTOR = re.compile(
    r"(?P<module>.+?)\.(?:(?P<down>lora_A|lora\.down|lora_down)|(?P<up>lora_B|lora\.up|lora_up))"
)


@dataclass(frozen=True)
class Pair:
    """The factors of one addition, up @ down * scale: their names in the file, and the scale (alpha / rank)."""

    down: str
    up: str
    scale: float


@dataclass(frozen=True)
class Lora:
    """A file of additions. weight: what all of them are multiplied with. pairs: by the parameter they add to."""

    path: Path
    weight: float
    pairs: Mapping[str, Pair]
    entries: Mapping[str, TensorEntry] = field(repr=False)

    def add_to(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter with its addition, in fp32; the parameter itself where there is none."""
        if name not in self.pairs:
            return tensor
        pair = self.pairs[name]
        with safe_open(self.path, framework="pt", device="cpu") as file:
            down, up = (file.get_tensor(key).float() for key in (pair.down, pair.up))
        return tensor.float() + product(up, down, tensor.shape) * (pair.scale * self.weight)


def product(up: Tensor, down: Tensor, shape: Sequence[int]) -> Tensor:
    """up @ down, as a weight of `shape`. Of convolutions, `down` has the kernel and `up` one of 1."""
    return (up.flatten(1) @ down.flatten(1)).reshape(tuple(shape))


def split_weight(text: str) -> tuple[Path, float]:
    """File and weight of `FILE[:WEIGHT]`. Raises InputError for a weight that is no finite number."""
    name, colon, number = text.rpartition(":")
    if not colon:
        return Path(text).expanduser(), 1.0
    try:
        weight = float(number)
    except ValueError:
        return Path(text).expanduser(), 1.0  # a colon in the file's own name
    if not math.isfinite(weight):
        raise InputError("lora", text, "give a finite number after the colon", problem="has no usable weight")
    return Path(name).expanduser(), weight


def read_lora(text: str) -> Lora:
    """The additions in `FILE[:WEIGHT]`, from the file's header alone.

    Raises InputError where there is no such file, or where it holds anything but whole pairs of factors.
    """
    path, weight = split_weight(text)
    if path.suffix != ".safetensors":
        remedy = "use a safetensors file; vinfinity models convert makes T2V-Turbo's into a model"
        raise InputError("lora", path, remedy, problem="does not end in .safetensors")
    if not path.is_file():
        raise InputError("lora", path, "check the path", problem="is no file")
    entries = read_header(path, field="lora")
    found: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    strangers = []
    for key in entries:
        name = _bare(key)
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha").removesuffix(".lora")] = key
        elif match := FACTOR.match(name):
            found.setdefault(match["module"], {})["down" if match["down"] else "up"] = key
        else:
            strangers.append(f"unexpected {key}")
    strangers += [f"missing the other factor of {module}" for module, pair in found.items() if len(pair) < 2]
    strangers += [f"unexpected {key}" for module, key in alphas.items() if module not in found]
    if strangers or not found:
        problem = f"is no LoRA of diffusers or PEFT: {listed(strangers) or 'it holds no factors'}"
        raise WeightsError("lora", path, "use a file in their naming", problem=problem)
    scales = _scales(path, {module: entries[pair["down"]].shape[0] for module, pair in found.items()}, alphas)
    pairs = {
        f"{module}.weight": Pair(down=pair["down"], up=pair["up"], scale=scales[module])
        for module, pair in found.items()
    }
    return Lora(path=path, weight=weight, pairs=pairs, entries=entries)


def check_lora(lora: Lora, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises WeightsError where a LoRA adds to parameters that a UNet with these shapes does not have."""
    faults = []
    for name, pair in lora.pairs.items():
        down, up = lora.entries[pair.down].shape, lora.entries[pair.up].shape
        wanted = shapes.get(name)
        if wanted is None:
            faults.append(f"no {name.removesuffix('.weight')} in this model")
        elif not _fits(down, up, wanted):
            faults.append(f"{name} is {shown(wanted)}, the factors {shown(up)} and {shown(down)}")
    if faults:
        problem = f"is for another model: {listed(faults)}"
        raise WeightsError("lora", lora.path, "use one that was trained on this model", problem=problem)


def _fits(down: tuple[int, ...], up: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if min(len(down), len(up), len(wanted)) < 2 or up[1] != down[0]:
        return False
    return up[0] == wanted[0] and math.prod(up[2:]) == 1 and down[1:] == wanted[1:]


def _bare(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _scales(path: Path, ranks: Mapping[str, int], alphas: Mapping[str, str]) -> dict[str, float]:
    """alpha / rank of each module, 1 where the file says nothing of alpha.

    alpha is a tensor beside the factors, or in the metadata that diffusers writes, or in PEFT's adapter_config.json.
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


# ---- T2V-Turbo's unet_lora.pt: factors without names, in the order of LVDM's modules ----

# The order in which LVDM's code makes modules that lie side by side.
ORDER = (
    "time_embed",
    "fps_embedding",
    "time_cond_proj",
    "input_blocks",
    "init_attn",
    "middle_block",
    "output_blocks",
    "out",
    "in_layers",
    "emb_layers",
    "out_layers",
    "skip_connection",
    "temopral_conv",
    "conv1",
    "conv2",
    "conv3",
    "conv4",
    "op",
    "conv",
    "norm",
    "proj_in",
    "transformer_blocks",
    "proj_out",
    "attn1",
    "ff",
    "attn2",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "net",
    "proj",
)
ONE_DIMENSIONAL = ("init_attn.0.proj_in", "init_attn.0.proj_out")  # convolutions that the training left out


def turbo_order(sources: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Our parameters that T2V-Turbo's LoRA adds to, in its order (utils/lora.py of Ji4chenLi/t2v-turbo).

    sources: our parameter -> LVDM's name below the UNet. shapes: of our parameters. The LoRA covers every linear layer
    and every two- or three-dimensional convolution.
    """

    def place(name: str) -> list[int]:
        module = sources[name].removesuffix(".weight")
        return [int(step) if step.isdigit() else ORDER.index(step) for step in module.split(".")]

    covered = [
        name
        for name, source in sources.items()
        if source.endswith(".weight")
        and len(shapes[name]) > 1
        and not source.removesuffix(".weight").endswith(ONE_DIMENSIONAL)
    ]
    return sorted(covered, key=place)


def turbo_faults(
    factors: Sequence[Tensor], order: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Why a list of factors (up, down, up, down, ...) is none for these parameters; empty where it is."""
    if len(factors) != 2 * len(order):
        return [f"{len(factors)} tensors, not {2 * len(order)}"]
    faults = []
    for index, name in enumerate(order):
        up, down = (tuple(factors[2 * index + i].shape) for i in (0, 1))
        if not _fits(down, up, shapes[name]):
            faults.append(
                f"pair {index} is {shown(up)} and {shown(down)} for {name} of {shown(shapes[name])}"
            )
    return faults


def merge_turbo(name: str, tensor: Tensor, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """A parameter with its addition, in fp32."""
    if name not in factors:
        return tensor
    up, down = factors[name]
    return tensor.float() + product(up.float(), down.float(), tensor.shape)
