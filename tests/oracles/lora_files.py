"""LoRA files in every layout that users have, and the networks that they should make.

What a file should make comes from PEFT, which trained and merges it, from diffusers' own loader, or from a dense
computation written here. refused_loras.py has the files that cannot be merged.
"""

import copy
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel
from diffusers.loaders.peft import PeftAdapterMixin
from oracles.reference import tiny_pipeline, tiny_unet
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

State = dict[str, Tensor]
RESNETS = r".*resnets\.\d\.(conv1|conv2|conv_shortcut)"
TARGETS: dict[str, list[str] | str] = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "convolutions": RESNETS + "|conv_in|conv_out",
    "convolutions over time": ["conv1.2", "conv2.3", "conv3.3", "conv4.3"],
    "all kinds": RESNETS + r"|.*(to_q|proj_in|proj_out|net\.2|time_emb_proj|linear_1|conv4\.3)",
}
# layers of every kind that kohya's and LyCORIS' names cover in diffusers' loader, which knows no temporal ones
SPATIAL = (
    r"(down|mid|up)_block(s\.\d)?\.(attentions|resnets)\."
    r".*(to_q|to_out\.0|net\.0\.proj|proj_in|conv1|time_emb_proj)"
)
EVERY = SPATIAL.replace("attentions|", "attentions|temp_attentions|temp_convs|") + r"|transformer_in\..*to_k"
ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
TEXT = r".*(q_proj|out_proj|fc1)"


@dataclass(frozen=True)
class Written:
    """A LoRA. text: for --lora. unet, text_encoder: the weights that it should make, named as in the files."""

    text: str
    unet: State
    text_encoder: State


Maker = Callable[[Path], Written]


class LoadableUNet(UNet3DConditionModel, PeftAdapterMixin):
    """A UNet3DConditionModel with diffusers' loader of LoRAs, which it lacks."""


def base_unet() -> UNet3DConditionModel:
    return tiny_unet()


def base_states() -> tuple[State, State]:
    """Return the weights of the tiny pipeline's UNet and text encoder."""
    pipeline = tiny_pipeline()
    return dict(pipeline.unet.state_dict()), dict(pipeline.text_encoder.state_dict())


# ---- PEFT ----


def randomise(model: nn.Module, *marks: str) -> nn.Module:
    """Leave nothing at zero: fills every parameter that has one of the marks in its name."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if any(mark in name for mark in marks):
                generator = torch.Generator().manual_seed(index)
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter.abs() + noise.abs() if "magnitude" in name else noise)
    return model.eval()


def adapted(model: nn.Module, config: Any) -> Any:
    """PEFT's adapter on a copy of a model, as if trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(copy.deepcopy(model), config)
    return randomise(peft_model, "lora_", "hada_", "lokr_", "modules_to_save")


def merged(model: PeftModel) -> State:
    """Return the weights after PEFT merged its adapter."""
    return dict(copy.deepcopy(model).merge_and_unload().state_dict())


def factors(model: PeftModel) -> State:
    """`base_model.model.<module>.lora_A.weight` and so on, as PEFT saves them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {key: x.contiguous() for key, x in get_peft_model_state_dict(model).items()}


def trained(unet: nn.Module, targets: list[str] | str, **options: Any) -> Any:
    """PEFT's LoRA on a UNet, with nothing left at zero."""
    return adapted(unet, LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": targets, **options}))


def by_peft(config: Any, *, change: Callable[[Any], None] | None = None, text: bool = False) -> Maker:
    """Return a folder that PEFT saved. change: of the trained model before that. text: of the text encoder."""

    def write(folder: Path) -> Written:
        pipeline = tiny_pipeline()
        model = adapted(pipeline.text_encoder if text else pipeline.unet, config)
        if change is not None:
            change(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)
        unet, text_encoder = base_states()
        states = (unet, merged(model)) if text else (merged(model), text_encoder)
        return Written(str(folder / "adapter_model.safetensors"), *states)

    return write


def train_biases(model: Any) -> None:
    """Return what PEFT's `bias` trains: the model's own biases."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if parameter.requires_grad and parameter.dim() == 1:
                parameter += 0.1 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(index)
                )


# ---- diffusers ----


def by_diffusers(make: Callable[[State, State], State], **files: Any) -> Maker:
    """Return a file whose tensors `make` makes from the weights of both networks, merged by diffusers' own loader."""

    def write(folder: Path) -> Written:
        unet, text_encoder = base_states()
        state = make(unet, text_encoder)
        path = save(folder, state, **files)
        pipeline = tiny_pipeline()
        pipeline.unet.__class__ = LoadableUNet
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.load_lora_weights(copy.deepcopy(state))
            networks = [
                "unet",
                *(["text_encoder"] if any("te" in key.split(".")[0] for key in state) else []),
            ]
            pipeline.fuse_lora(components=networks)
            pipeline.unload_lora_weights()
        return Written(path, dict(pipeline.unet.state_dict()), dict(pipeline.text_encoder.state_dict()))

    return write


# ---- dense computations ----


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(state: State, pattern: str) -> Iterable[tuple[int, str, Tensor]]:
    """Yield a seed, the module's name and the weight of every layer whose name fits the pattern."""
    for seed, (name, tensor) in enumerate(state.items()):
        module = name.removesuffix(".weight")
        if tensor.dim() > 1 and re.fullmatch(pattern, module):
            yield seed, module, tensor


def low_rank(weight: Tensor, seed: int, rank: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Factors up and down for a weight, and their product."""
    o, i, *kernel = weight.shape
    up, down = noise(o, rank, *[1] * len(kernel), seed=seed), noise(rank, i, *kernel, seed=seed + 1000)
    product = torch.zeros_like(weight)
    for r in range(rank):
        product += up[:, r].reshape(o, 1, *[1] * len(kernel)) * down[None, r]
    return up, down, product


def kohya_name(module: str, prefix: str) -> str:
    return f"{prefix}{module.replace('.', '_')}"


@dataclass
class Layer:
    """One layer of a file: its tensors, and what they make of the weight and of the bias."""

    tensors: State
    weight: Tensor
    bias: Tensor | None = None


LayerMaker = Callable[[Tensor, Tensor | None, int], Layer]


def by_hand(
    layer: LayerMaker,
    *,
    unet: str = EVERY,
    text: str | None = None,
    prefixes: tuple[str, str] = ("lora_unet_", "lora_te_text_model_"),
    rename: Callable[[str, str], str] = kohya_name,
    **files: Any,
) -> Maker:
    """Write a file of one entry per layer. unet, text: the layers. rename: from a module and a prefix to its name."""

    def write(folder: Path) -> Written:
        states = base_states()
        tensors: State = {}
        for state, pattern, prefix in zip(states, (unet, text), prefixes, strict=True):
            for seed, module, weight in list(weights_of(state, pattern or "none")):
                made = layer(weight, state.get(f"{module}.bias"), seed)
                tensors |= {f"{rename(module, prefix)}.{end}": x for end, x in made.tensors.items()}
                state[f"{module}.weight"] = made.weight
                if made.bias is not None:
                    state[f"{module}.bias"] = made.bias
        return Written(save(folder, tensors, **files), *states)

    return write


def lora_layer(
    down: str = "lora_down.weight",
    up: str = "lora_up.weight",
    *,
    alpha: float | None = 1.0,
    dtype: torch.dtype = torch.float32,
) -> LayerMaker:
    def layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
        a, b, _ = low_rank(weight, seed)
        a, b = a.to(dtype), b.to(dtype)
        product = sum(
            a[:, r].float().reshape(-1, 1, *[1] * (weight.dim() - 2)) * b[None, r].float() for r in range(2)
        )
        tensors = {up: a, down: b} | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
        return Layer(tensors, weight + (1.0 if alpha is None else alpha / 2) * product)

    return layer


def tucker_product(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """Sum over ranks r and s of outputs[r] x inputs[s] x core[r, s]."""
    kernel = core.shape[2:]
    total = torch.zeros(outputs.shape[1], inputs.shape[1], *kernel)
    for r, s in itertools.product(range(core.shape[0]), range(core.shape[1])):
        matrix = torch.outer(outputs[r], inputs[s]).reshape(*total.shape[:2], *[1] * len(kernel))
        total += matrix * core[r, s]
    return total


def locon_layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
    """LyCORIS' LoCon; with a core for kernels larger than 1."""
    o, i, *kernel = weight.shape
    if all(side == 1 for side in kernel):
        return lora_layer()(weight, bias, seed)
    ones = [1] * len(kernel)
    up, down = noise(o, 2, *ones, seed=seed), noise(2, i, *ones, seed=seed + 1000)
    mid = noise(2, 2, *kernel, seed=seed + 2000)
    product = tucker_product(mid, up.flatten(1).T, down.flatten(1))
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid}
    return Layer({**tensors, "alpha": torch.tensor(1.0)}, weight + 0.5 * product)


def loha_layer(*, core: bool) -> LayerMaker:
    def layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
        o, i, *kernel = weight.shape
        tensors, halves = {}, []
        for half in (1, 2):
            at = seed + 1000 * half
            if core and any(side > 1 for side in kernel):
                a, b = noise(2, o, seed=at), noise(2, i, seed=at + 1)
                t = noise(2, 2, *kernel, seed=at + 2) + 0.5
                tensors[f"hada_t{half}"] = t
                halves.append(tucker_product(t, a, b))
            else:
                a, b = noise(o, 2, seed=at), noise(2, weight[0].numel(), seed=at + 1)
                halves.append(torch.stack([a @ b]).reshape(weight.shape))
            tensors |= {f"hada_w{half}_a": a, f"hada_w{half}_b": b}
        return Layer({**tensors, "alpha": torch.tensor(8.0)}, weight + 4 * halves[0] * halves[1])

    return layer


def lokr_layer(kind: str) -> LayerMaker:
    """kind: "whole", "factors" or "core", of the second matrix."""

    def layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
        o, i, *kernel = weight.shape
        first = noise(2, 2, seed=seed) + 0.3
        c, d = o // 2, i // 2
        tensors: State = {"lokr_w1": first}
        if kind == "whole":
            second = noise(c, d, *kernel, seed=seed + 1)
            tensors["lokr_w2"] = second
            # LyCORIS stores its own rank as alpha here, and does not scale
            scale, alpha = 1.0, 16.0
        elif kind == "core" and any(side > 1 for side in kernel):
            a, b = noise(2, c, seed=seed + 1), noise(2, d, seed=seed + 2)
            t = noise(2, 2, *kernel, seed=seed + 3) + 0.5
            second, scale, alpha = tucker_product(t, a, b), 0.5, 1.0
            tensors |= {"lokr_w2_a": a, "lokr_w2_b": b, "lokr_t2": t}
        else:
            a, b = noise(c, 2, seed=seed + 1), noise(2, d * weight[0, 0].numel(), seed=seed + 2)
            second, scale, alpha = (a @ b).reshape(c, d, *kernel), 0.5, 1.0
            tensors |= {"lokr_w2_a": a, "lokr_w2_b": b}
        product = torch.zeros_like(weight)
        for row, column in itertools.product(range(2), range(2)):
            block = (slice(row * c, (row + 1) * c), slice(column * d, (column + 1) * d))
            product[block] = first[row, column] * second
        return Layer({**tensors, "alpha": torch.tensor(alpha)}, weight + scale * product)

    return layer


def dora_layer(axis: int) -> LayerMaker:
    """LyCORIS' dora_scale. axis: 0 with a length per output, 1 per input."""

    def layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
        plain = lora_layer()(weight, bias, seed)
        others = [d for d in range(weight.dim()) if d != axis]
        lengths = plain.weight.square().sum(dim=others, keepdim=True).sqrt()
        scale = lengths * (1 + noise(*lengths.shape, seed=seed).abs())
        return Layer({**plain.tensors, "dora_scale": scale}, plain.weight / lengths * scale)

    return layer


def full_layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
    """LyCORIS' full matrices."""
    change = noise(*weight.shape, seed=seed)
    if bias is None:
        return Layer({"diff": change}, weight + change)
    shift = noise(*bias.shape, seed=seed + 1)
    return Layer({"diff": change, "diff_b": shift}, weight + change, bias + shift)


def norms(folder: Path) -> Written:
    """LyCORIS' norms, beside a LoRA."""
    written = by_hand(lora_layer(), unet=r".*attn1\.to_q")(folder)
    tensors, unet = load_file(written.text), dict(written.unet)
    for seed, name in enumerate(list(unet)):
        module, _, kind = name.rpartition(".")
        if "norm" in module.rpartition(".")[2]:
            change = noise(*unet[name].shape, seed=seed)
            tensors[f"{kohya_name(module, 'lora_unet_')}.{'w' if kind == 'weight' else 'b'}_norm"] = change
            unet[name] = unet[name] + change
    return Written(save(folder, tensors), unet, written.text_encoder)


def loralib_layer(weight: Tensor, bias: Tensor | None, seed: int) -> Layer:
    """loralib's factors as Text-To-Video-Finetuning trains them (stable_lora/lora.py)."""
    o, i, *kernel = weight.shape
    k = kernel[0] if kernel else 1
    a, b = noise(2 * k, i * k, seed=seed), noise(o * k, 2 * k, seed=seed + 1)
    product = b @ a
    if len(kernel) == 3:
        product = product.reshape(o, i, k, k, 1).mean(-2, keepdim=True)
    return Layer({"lora_A": a, "lora_B": b}, weight + product.reshape(weight.shape))


def processor_names(module: str, prefix: str) -> str:
    """diffusers before 0.17: unet.<...>.attn1.processor.to_q_lora"""
    parent, _, layer = module.removesuffix(".0").rpartition(".")
    return f"{prefix}{parent}.processor.{layer}_lora"


def old_text_names(module: str, prefix: str) -> str:
    parent, _, layer = module.rpartition(".")
    attention = {"q_proj": "to_q_lora", "out_proj": "to_out_lora"}
    return (
        f"{prefix}{parent}.{attention[layer]}"
        if layer in attention
        else f"{prefix}{module}.lora_linear_layer"
    )


def dotted(module: str, prefix: str) -> str:
    return prefix + module


def kohya_state(unet: State, text: State | None = None, te: str = "lora_te_text_model_") -> State:
    """kohya's names and alphas."""
    tensors: State = {}
    for state, pattern, prefix in ((unet, SPATIAL, "lora_unet_"), (text or {}, TEXT, te)):
        for seed, module, weight in weights_of(state, pattern):
            up, down, _ = low_rank(weight, seed)
            name = kohya_name(module, prefix)
            tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


def processor_state(unet: State, text: State | None = None) -> State:
    """Return the names of diffusers before 0.17."""
    tensors: State = {}
    for seed, module, weight in weights_of(unet, ATTENTION):
        up, down, _ = low_rank(weight, seed)
        name = processor_names(module, "unet.")
        tensors |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    for seed, module, weight in weights_of(text or {}, TEXT):
        up, down, _ = low_rank(weight, seed)
        name = old_text_names(module, "text_encoder.text_model.")
        tensors |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    return tensors


# ---- files ----


def save(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    name: str = "lora.safetensors",
    metadata: Mapping[str, str] | None = None,
    inside: str | None = None,
) -> str:
    """Write a file by its ending, and return its path. inside: a key of the pickled dictionary that has the tensors."""
    path = folder / name
    tensors = {key: tensor.contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    else:
        torch.save(tensors if inside is None else {inside: tensors}, path)
    return str(path)


def renamed(make: Maker, rename: Callable[[str], str], **files: Any) -> Maker:
    """Return a file of another maker with other names, and without the settings beside it."""

    def write(folder: Path) -> Written:
        written = make(folder)
        state = {rename(key): tensor for key, tensor in load_file(written.text).items()}
        (folder / "adapter_config.json").unlink(missing_ok=True)
        (folder / "adapter_model.safetensors").unlink(missing_ok=True)
        return Written(save(folder, state, **files), written.unet, written.text_encoder)

    return write


def in_folder(make: Maker) -> Maker:
    """`--lora FOLDER`."""

    def write(folder: Path) -> Written:
        written = make(folder)
        return Written(str(folder), written.unet, written.text_encoder)

    return write


def as_pickle(make: Maker) -> Maker:
    """PEFT's adapter_model.bin, with its settings beside it."""

    def write(folder: Path) -> Written:
        written = make(folder)
        torch.save(load_file(written.text), folder / "adapter_model.bin")
        Path(written.text).unlink()
        return Written(str(folder / "adapter_model.bin"), written.unet, written.text_encoder)

    return write


def through_links(make: Maker) -> Maker:
    """As in the hub's cache: a folder whose files are links to others with names that say nothing."""

    def write(folder: Path) -> Written:
        blobs, snapshot = folder / "blobs", folder / "snapshot"
        blobs.mkdir()
        snapshot.mkdir()
        written = make(blobs)
        for index, path in enumerate(sorted(blobs.iterdir())):
            (snapshot / path.name).symlink_to(path.rename(blobs / f"blob-{index}"))
        name = Path(written.text).name
        return Written(str(snapshot / name), written.unet, written.text_encoder)

    return write


def both(first: Maker, second: Maker, name: str = "lora.safetensors", **files: Any) -> Maker:
    """One file for the UNet and the text encoder, made of one for each."""

    def write(folder: Path) -> Written:
        parts = []
        for index, make in enumerate((first, second)):
            (folder / str(index)).mkdir()
            parts.append(make(folder / str(index)))
        state = load_file(parts[0].text) | load_file(parts[1].text)
        return Written(save(folder, state, name=name, **files), parts[0].unet, parts[1].text_encoder)

    return write


ALPHA_IS_RANK = {"r": 3, "lora_alpha": 3}
PEFT = by_peft(LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS["all kinds"]))
PEFT_TEXT = by_peft(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"]), text=True)
PLAIN = by_peft(LoraConfig(**ALPHA_IS_RANK, target_modules=TARGETS["attention"]))
METADATA = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 5, "text_encoder.r": 2})}
CONVOLUTIONS = r".*(to_q|proj_in|resnets\.\d\.conv1)"

# Every layout that is read: the name is the test's.
LAYOUTS: dict[str, Maker] = {
    # PEFT
    "PEFT": PEFT,
    "PEFT, folder": in_folder(PEFT),
    "PEFT, .bin": as_pickle(PEFT),
    "PEFT, through links": through_links(PEFT),
    "PEFT, text encoder": PEFT_TEXT,
    "PEFT, token embedding": by_peft(
        LoraConfig(r=2, lora_alpha=3, target_modules=["token_embedding", "q_proj"]), text=True
    ),
    "PEFT, use_rslora": by_peft(
        LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS["attention"], use_rslora=True)
    ),
    "PEFT, alpha_pattern": by_peft(
        LoraConfig(
            r=3, target_modules=TARGETS["attention"], alpha_pattern={"to_q": 9, r".*attn2\.to_(k|v)": 2}
        )
    ),
    "PEFT, rank_pattern": by_peft(
        LoraConfig(r=3, target_modules=TARGETS["attention"], rank_pattern={"to_q": 2})
    ),
    "PEFT, lora_bias": by_peft(
        LoraConfig(r=3, lora_alpha=5, target_modules=CONVOLUTIONS.replace("to_q", "to_out.0"), lora_bias=True)
    ),
    "PEFT, bias of all layers": by_peft(
        LoraConfig(r=3, target_modules=CONVOLUTIONS, bias="all"), change=train_biases
    ),
    "PEFT, bias of its layers": by_peft(
        LoraConfig(r=3, target_modules=CONVOLUTIONS, bias="lora_only"), change=train_biases
    ),
    "PEFT, modules_to_save": by_peft(
        LoraConfig(r=3, target_modules=TARGETS["attention"], modules_to_save=["conv_in"])
    ),
    "PEFT, DoRA": by_peft(
        LoraConfig(r=3, lora_alpha=5, target_modules=CONVOLUTIONS + r"|.*conv4\.3", use_dora=True)
    ),
    "PEFT, LoHa": by_peft(LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS)),
    "PEFT, LoHa with cores": by_peft(
        LoHaConfig(r=3, alpha=5, target_modules=CONVOLUTIONS, use_effective_conv2d=True)
    ),
    "PEFT, LoKr": by_peft(LoKrConfig(r=2, alpha=5, target_modules=CONVOLUTIONS)),
    "PEFT, LoKr with cores": by_peft(
        LoKrConfig(
            r=2,
            alpha=5,
            target_modules=CONVOLUTIONS,
            use_effective_conv2d=True,
            decompose_both=True,
            decompose_factor=8,
        )
    ),
    "PEFT, LoKr of whole matrices": by_peft(
        LoKrConfig(r=32, alpha=5, target_modules=CONVOLUTIONS, rank_pattern={"to_q": 16})
    ),
    "PEFT, state dict with the adapter's name": renamed(
        PLAIN, lambda key: re.sub(r"(lora_[AB])\.", r"\1.default.", key)
    ),
    "PEFT, from distributed training": renamed(PLAIN, lambda key: f"module.{key}"),
    # diffusers
    "diffusers": renamed(PEFT, lambda key: key.replace("base_model.model.", "unet."), metadata=METADATA),
    "diffusers, both networks": both(
        renamed(PLAIN, lambda key: key.replace("base_model.model.", "unet.")),
        renamed(PEFT_TEXT, lambda key: key.replace("base_model.model.", "text_encoder.text_model.")),
    ),
    "diffusers, lora.down": renamed(
        PLAIN,
        lambda key: (
            key.replace("base_model.model.", "unet.")
            .replace("lora_A", "lora.down")
            .replace("lora_B", "lora.up")
        ),
    ),
    "diffusers, attention processors": by_diffusers(lambda unet, text: processor_state(unet)),
    "diffusers, attention processors and text encoder": by_diffusers(processor_state),
    "diffusers, attention processors without prefix": renamed(
        by_diffusers(lambda unet, text: processor_state(unet)), lambda key: key.removeprefix("unet.")
    ),
    "diffusers, attention processors, .bin": renamed(
        by_diffusers(lambda unet, text: processor_state(unet)),
        lambda key: key,
        name="pytorch_lora_weights.bin",
    ),
    # kohya
    "kohya": by_diffusers(lambda unet, text: kohya_state(unet)),
    "kohya, text encoder": by_diffusers(kohya_state),
    "kohya, lora_te1": by_diffusers(
        lambda unet, text: kohya_state(unet, text, te="lora_te1_text_model_"),
    ),
    "kohya, temporal layers": by_hand(lora_layer(), text=TEXT),
    "LyCORIS outside kohya's scripts": by_hand(
        lora_layer(), text=TEXT, prefixes=("lycoris_", "lycoris_text_model_")
    ),
    "kohya, without alpha": by_hand(lora_layer(alpha=None)),
    "kohya, .pt": by_hand(lora_layer(), text=TEXT, name="lora.pt"),
    "kohya, .ckpt with state_dict": by_hand(lora_layer(), name="lora.ckpt", inside="state_dict"),
    "kohya, fp16": by_hand(lora_layer(dtype=torch.float16)),
    "kohya, bf16": by_hand(lora_layer(dtype=torch.bfloat16)),
    # LyCORIS
    "LyCORIS, LoCon with cores": by_hand(locon_layer),
    "LyCORIS, LoHa": by_hand(loha_layer(core=False)),
    "LyCORIS, LoHa with cores": by_hand(loha_layer(core=True), text=TEXT),
    "LyCORIS, LoKr": by_hand(lokr_layer("factors")),
    "LyCORIS, LoKr with cores": by_hand(lokr_layer("core")),
    "LyCORIS, LoKr of whole matrices": by_hand(lokr_layer("whole")),
    "LyCORIS, DoRA by outputs": by_hand(dora_layer(0)),
    "LyCORIS, DoRA by inputs": by_hand(dora_layer(1)),
    "LyCORIS, full matrices and biases": by_hand(full_layer, text=TEXT),
    "LyCORIS, norms": norms,
    # loralib
    "Text-To-Video-Finetuning (loralib)": by_hand(loralib_layer, prefixes=("", ""), rename=dotted),
}
