"""The names of tensors in LoRA files: which network, module and factor a tensor belongs to.

Trainers and libraries name the same factor in many ways:

    base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight                 PEFT
    unet.down_blocks.0.attentions.0.proj_in.lora.down.weight                          diffusers
    down_blocks.0...attn1.processor.to_q_lora.down.weight                             diffusers before 0.17
    text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight    diffusers, text encoder
    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight                     kohya, LyCORIS
    lora_unet_input_blocks_1_1_proj_in.lora_down.weight                               the same with LVDM's names
    lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a                             LyCORIS, text encoder
    lycoris_down_blocks_0_attentions_0_proj_in.lokr_w1                                LyCORIS outside kohya's scripts
    lora_unet__blocks_0_self_attn_q.lora_down.weight                                  VideoX-Fun, Wan's own names
    pipe.dit.blocks.0.self_attn.q.lora_A.default.weight                               DiffSynth-Studio
    diffusion_model.blocks.0.diff_m                                                   LightX2V, Wan's tables
    diffusion_model.blocks.0.modulation.diff                                          the same in ComfyUI

A module is found by looking its name up among all the names that modules of the model can have.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from vinfinity.models.family import Network
from vinfinity.models.low_rank import FORMULAS, Shape

# Prefixes that wrappers add to all names during training.
WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "lycoris_")

_DOWN = r"(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)"
_UP = r"(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)"
# the name of the adapter, which is in PEFT's state dicts but not in its files
_ADAPTER = r"(?:\.[^.]+)?"
# Patterns for the end of a tensor's name, by the role of the tensor in a formula.
ROLES: Mapping[str, str] = {
    "down": rf"{_DOWN}{_ADAPTER}\.weight",
    "up": rf"{_UP}{_ADAPTER}\.weight",
    "up_bias": rf"{_UP}{_ADAPTER}\.bias",
    "mid": r"lora_mid\.weight",
    "A": "lora_A",
    "B": "lora_B",
    "magnitude": rf"lora_magnitude_vector{_ADAPTER}",
    "dora_scale": "dora_scale",
    "alpha": r"(?:lora\.|lora_linear_layer\.)?alpha",
    **{
        role: rf"{role}{_ADAPTER}"
        for name in ("loha", "lokr")
        for role in FORMULAS[name].roles - {"magnitude"}
    },
    "embedding_A": rf"lora_embedding_A{_ADAPTER}",
    "embedding_B": rf"lora_embedding_B{_ADAPTER}",
    # before "diff", which would match the table as a layer
    "diff_m": r"(?:diff_m|modulation\.diff)",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "w_norm",
    "b_norm": "b_norm",
    "weight": r"(?:base_layer\.|modules_to_save\.[^.]+\.)?weight",
    "bias": r"(?:base_layer\.|modules_to_save\.[^.]+\.)?bias",
}
_ENDS = {role: re.compile(rf"(?P<module>.+?)\.{end}") for role, end in ROLES.items()}
# diffusers before 0.17 joins the layer and the word "lora"
_PROCESSOR = re.compile(r"\.to_(q|k|v|out)_lora\.")

# Kinds of tensors that cannot be merged, by a pattern in their names without the model's prefixes.
FOREIGN: Mapping[str, str] = {
    r"ia3_l|\.on_input$": "IA3",
    r"oft_": "OFT or BOFT",
    r"glora_|\.(a1|a2|b1|b2)\.weight$": "GLoRA",
    r"vera_lambda|randlora_|vblora_": "VeRA or a relative of it",
    r"hra_u": "HRA",
    r"fourierft_": "FourierFT",
    r"lora_E|\branknum\b": "AdaLoRA",
    r"lora_diag": "KaSA",
    r"token_adapter|trainable_tokens": "single trained tokens (trainable_token_indices of PEFT)",
    r"emb_params|bundle_emb": "textual inversion",
    r"custom_diffusion": "Custom Diffusion",
    r"motion_modules": "a motion module of AnimateDiff",
    r"text_encoder_2|lora_te[23]_|text_encoder_3": "a second text encoder, as in SDXL",
    r"(single|double|joint)_(transformer_)?blocks": "FLUX, Stable Diffusion 3 or a relative of them",
    r"^(lora_transformer_|transformer\.)": "a diffusion transformer",
    r"^(unet|text_encoder):\d+:": "cloneofsimo's lora, which numbers the layers",
}


@dataclass(frozen=True)
class Target:
    """A network that a LoRA changes.

    shapes: the shapes of its parameters. modules: the module for every name that a file can use, without prefix.
    """

    network: str
    prefixes: tuple[str, ...]
    shapes: Mapping[str, Shape] = field(repr=False)
    modules: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Role:
    """What a tensor is. module: the name of its module, without prefix. network: None if the file does not say."""

    name: str
    module: str
    network: str | None


def make_target(name: str, network: Network, config: Any, shapes: Mapping[str, Shape]) -> Target:
    """Make the target for the network `name` of a model, from its config and the shapes of its parameters."""
    own = dict.fromkeys(parameter.rpartition(".")[0] for parameter in shapes)
    names = {module: module for module in own} | dict(network.aliases(config, own))
    # kohya writes underscores for all dots; PEFT and diffusers keep the first layer of an attention's output apart
    names |= {name.removesuffix(".0"): module for name, module in names.items() if name.endswith("to_out.0")}
    flat = {name.replace(".", "_"): module for name, module in names.items()}
    return Target(name, network.lora_prefixes, shapes, flat | names)


def read_role(key: str, targets: Collection[Target]) -> Role | None:
    """Return what a tensor of a LoRA file is, by its name; None if the name stands for nothing that can be merged."""
    name, network = _without_prefixes(key, targets)
    name = _PROCESSOR.sub(r".to_\1.lora.", name.replace(".processor.", "."))
    for role, end in _ENDS.items():
        if match := end.fullmatch(name):
            return Role(role, match["module"], network)
    return None


def _without_prefixes(key: str, targets: Collection[Target]) -> tuple[str, str | None]:
    """Return a tensor's name without the prefixes of networks and wrappers, and the network that they name."""
    name, network = key, None
    prefixes = [(prefix, target.network) for target in targets for prefix in target.prefixes]
    while found := next(
        (
            (prefix, own)
            for prefix, own in (*((wrapper, network) for wrapper in WRAPPERS), *prefixes)
            if name.startswith(prefix)
        ),
        None,
    ):
        name, network = name.removeprefix(found[0]), found[1]
    return name, network


def find_module(role: Role, targets: Collection[Target]) -> tuple[str, str] | None:
    """Return the network and the module of the model that a tensor changes; None if no module has that name."""
    for target in targets:
        if role.network in (None, target.network) and role.module in target.modules:
            return target.network, target.modules[role.module]
    return None


def foreign_kind(keys: Collection[str], targets: Collection[Target]) -> tuple[str, str] | None:
    """Return the first of these tensors that is of a known kind that cannot be merged, and that kind."""
    for key in keys:
        name, _ = _without_prefixes(key, targets)
        for pattern, kind in FOREIGN.items():
            if re.search(pattern, name):
                return key, kind
    return None
