"""LVDM's layout: the single checkpoint in which VideoCrafter2 was published, and where each of its tensors goes.

Every tensor in the file is accounted for. The tables below name the source of each of our parameters; `UNUSED_TENSORS`
and `unused_text` name what is left out on purpose; any other extra or missing tensor is a fault. The names come from
AILab-CVC/VideoCrafter (lvdm/modules/networks/openaimodel3d.py, ae_modules.py, encoders/condition.py).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vinfinity.models.checkpoint import Checkpoint, CheckpointPart, Shape, Shapes, TensorSource
from vinfinity.models.unet3d.clip import TextEncoder
from vinfinity.models.unet3d.configs import (
    FIRST_ATTENTION_HEADS,
    UP_BLOCKS,
    VAE_BLOCKS,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from vinfinity.models.unet3d.published import VIDEOCRAFTER2_CARD, VIDEOCRAFTER2_SCHEDULE
from vinfinity.models.unet3d.unet import UNet
from vinfinity.models.unet3d.vae import AutoencoderKL
from vinfinity.system.safetensors import shape_text

# Maps a network's config and its parameter names to the sources of the parameters.
Table = Callable[[Any, list[str]], dict[str, TensorSource]]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."

# Constants in LVDM's and OpenCLIP's code: groups in every GroupNorm, head width in every text tower, and the token that
# pads texts.
NORM_GROUPS = 32
TEXT_HEAD_WIDTH = 64
PAD_TOKEN_ID = 0

# Our modules inside a block, and LVDM's names for them.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
# The order of the rows in OpenCLIP's attn.in_proj.
FUSED_ORDER = ("q_proj", "k_proj", "v_proj")

# Used only by training and by LVDM's own sampler: quantities that follow from the betas of the noise schedule.
UNUSED_TENSORS = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
        "scale_arr",
        "scale_arr_prev",
        "scale_factor",
    }
)


def is_lvdm(names: Mapping[str, object]) -> bool:
    """Return whether these tensors are a whole LVDM checkpoint."""
    return any(name.startswith(UNET) for name in names)


def read_lvdm(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Read VideoCrafter2 or a model like it. Raises ValueError if the architecture is not supported."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    parts = lvdm_parts(shapes)
    latent_scale = latent_scale_of(tensors)
    return Checkpoint(
        parts=parts,
        faults=tuple(lvdm_faults(parts, shapes)),
        schedule={**VIDEOCRAFTER2_SCHEDULE, **latent_scale},
        card={**VIDEOCRAFTER2_CARD, "sampler": "videocrafter2" if latent_scale else "ddim"},
        pad_token_id=PAD_TOKEN_ID,
    )


def lvdm_parts(shapes: Shapes) -> tuple[CheckpointPart, ...]:
    """Describe the networks of a checkpoint whose tensors have these shapes.

    Raises ValueError if their architecture is not supported.
    """
    unet, vae, text = unet_config(shapes), vae_config(shapes), text_config(shapes)
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "unet": UNet(unet),
            "vae": AutoencoderKL(vae),
            "text_encoder": TextEncoder(text),
        }
    shapes_of = {
        name: {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        for name, network in networks.items()
    }
    vae_types = {key: [kind] * len(vae.block_out_channels) for key, kind in VAE_BLOCKS.items()}
    text_types = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    return (
        _part("unet", {"_class_name": "UNet3DConditionModel"}, unet, unet_table, shapes_of["unet"]),
        _part("vae", {"_class_name": "AutoencoderKL", **vae_types}, vae, vae_table, shapes_of["vae"]),
        _part("text_encoder", text_types, text, text_table, shapes_of["text_encoder"]),
    )


def _part(name: str, types: Mapping[str, Any], config: Any, table: Table, shapes: Shapes) -> CheckpointPart:
    return CheckpointPart(
        name=name,
        config={**types, **dataclasses.asdict(config)},
        sources=table(config, list(shapes)),
        shapes=shapes,
    )


def lvdm_faults(parts: Sequence[CheckpointPart], shapes: Shapes) -> list[str]:
    """List a checkpoint's tensors that are missing, unexpected or misshaped, by their names in the file."""
    faults, used = [], set(UNUSED_TENSORS) | unused_text(shapes)
    for part in parts:
        for name, source in part.sources.items():
            used.add(source.name)
            needed = part.shapes[name]
            if source.third is not None:
                needed = (3 * needed[0], *needed[1:])
            shape = shapes.get(source.name)
            if shape is None:
                faults.append(f"missing {source.name}")
            elif _without_ones(shape) != _without_ones(needed):
                faults.append(f"{source.name} is {shape_text(shape)}, not {shape_text(needed)}")
    # the three thirds of a tensor count as one fault
    return [*dict.fromkeys(faults), *(f"unexpected {name}" for name in shapes if name not in used)]


def latent_scale_of(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Read the schedule that scales the clean latents, as scheduler settings; empty if the file has none.

    Raises ValueError if its factors do not fall in a straight line from 1 to a value that they then keep, as in
    VideoCrafter2's `scale_arr`.
    """
    if "scale_arr" not in tensors:
        return {}
    factors = tensors["scale_arr"].double().numpy()
    end = float(np.float32(factors[-1]))
    steps = int(np.argmax(np.isclose(factors, end, atol=1e-6))) + 1
    line = np.concatenate([np.linspace(1.0, end, steps), np.full(len(factors) - steps, end)])
    if np.abs(line - factors).max() > 1e-4:
        raise ValueError("scale_arr: is not a straight line followed by a constant")
    return {"latent_scale": round(end, 6), "latent_scale_steps": steps}


def _without_ones(shape: Shape) -> Shape:
    """Drop the ones at the end of a shape, so that linear layers match convolutions with kernel 1."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


# ---- the architecture, read from shapes ----


def unet_config(shapes: Shapes) -> UNetConfig:
    """Read the UNet's architecture. Raises ValueError if it is not supported."""

    def shape(name: str) -> Shape:
        if f"{UNET}{name}" not in shapes:
            raise ValueError(f"{UNET}{name}: is missing; only UNets like VideoCrafter2's are supported")
        return shapes[f"{UNET}{name}"]

    widths: list[int] = []
    attention: list[bool] = []
    layers, index = [0], 1
    while any(name.startswith(f"{UNET}input_blocks.{index}.") for name in shapes):
        if f"{UNET}input_blocks.{index}.0.op.weight" in shapes:
            layers.append(0)
        else:
            layers[-1] += 1
            if layers[-1] == 1:
                widths.append(shape(f"input_blocks.{index}.0.in_layers.2.weight")[0])
                attention.append(f"{UNET}input_blocks.{index}.1.norm.weight" in shapes)
        index += 1
    if not widths or len(set(layers)) != 1:
        raise ValueError(f"{UNET}input_blocks: levels of {layers} layers; all must have the same number")
    condition = shapes.get(f"{UNET}time_cond_proj.weight")
    return UNetConfig(
        in_channels=shape("input_blocks.0.0.weight")[1],
        out_channels=shape("out.2.weight")[0],
        down_block_types=tuple("CrossAttnDownBlock3D" if has else "DownBlock3D" for has in attention),
        up_block_types=tuple("CrossAttnUpBlock3D" if has else "UpBlock3D" for has in attention[::-1]),
        block_out_channels=tuple(widths),
        layers_per_block=layers[0],
        norm_num_groups=NORM_GROUPS,
        cross_attention_dim=shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        attention_head_dim=shape("init_attn.0.proj_in.weight")[0] // FIRST_ATTENTION_HEADS,
        time_cond_proj_dim=None if condition is None else condition[1],
        fps_cond=f"{UNET}fps_embedding.0.weight" in shapes,
    )


def vae_config(shapes: Shapes) -> VAEConfig:
    """Read the autoencoder's architecture. Raises ValueError if it is not supported."""
    widths: list[int] = []
    layers = 0
    while (name := f"{VAE}encoder.down.{len(widths)}.block.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    while f"{VAE}encoder.down.0.block.{layers}.conv1.weight" in shapes:
        layers += 1
    ends = [f"{VAE}{name}.weight" for name in ("encoder.conv_in", "decoder.conv_out", "post_quant_conv")]
    missing = [name for name in ends if name not in shapes]
    if not widths:
        missing.append(f"{VAE}encoder.down.0.block.0.conv1.weight")
    if missing:
        raise ValueError(f"{missing[0]}: is missing; only Stable Diffusion's autoencoder is supported")
    return VAEConfig(
        in_channels=shapes[ends[0]][1],
        out_channels=shapes[ends[1]][0],
        latent_channels=shapes[ends[2]][1],
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        norm_num_groups=NORM_GROUPS,
    )


def text_config(shapes: Shapes) -> TextConfig:
    """Read the text tower's architecture, without its last layer, which VideoCrafter2 does not use.

    Raises ValueError if it is not supported.
    """
    names = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    for name in names:
        if f"{TEXT}{name}" not in shapes:
            raise ValueError(f"{TEXT}{name}: is missing; only OpenCLIP's text tower is supported")
    tokens, positions, inner = (shapes[f"{TEXT}{name}"] for name in names)
    return TextConfig(
        vocab_size=tokens[0],
        hidden_size=tokens[1],
        intermediate_size=inner[0],
        num_hidden_layers=_text_layers(shapes) - 1,
        num_attention_heads=tokens[1] // TEXT_HEAD_WIDTH,
        max_position_embeddings=positions[0],
        hidden_act="gelu",
    )


def _text_layers(shapes: Shapes) -> int:
    count = 0
    while f"{TEXT}transformer.resblocks.{count}.ln_1.weight" in shapes:
        count += 1
    return count


def unused_text(shapes: Shapes) -> set[str]:
    """Select the tensors of the text tower that do not affect the states of the penultimate layer."""
    last = f"{TEXT}transformer.resblocks.{_text_layers(shapes) - 1}."
    ends = {f"{TEXT}{name}" for name in ("text_projection", "logit_scale", "attn_mask")}
    return ends | {name for name in shapes if name.startswith(last)}


# ---- tables: parameter -> source ----


def unet_table(config: UNetConfig, names: list[str]) -> dict[str, TensorSource]:
    """Return the source of each of a UNet's parameters `names`."""
    modules = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_cond_proj",
        "fps_embedding.linear_1": "fps_embedding.0",
        "fps_embedding.linear_2": "fps_embedding.2",
        "transformer_in": "init_attn.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }

    def layer(block: str, index: int, source: str, *, first: int = 0) -> None:
        """Add the resnet, temporal convolution and transformers of a layer: entries `first` and up of `source`."""
        modules.update(
            {f"{block}.resnets.{index}.{own}": f"{source}.{first}.{name}" for own, name in RESNET.items()}
        )
        # the misspelling is LVDM's
        modules[f"{block}.temp_convs.{index}"] = f"{source}.{first}.temopral_conv"
        modules[f"{block}.attentions.{index}"] = f"{source}.{first + 1}"
        modules[f"{block}.temp_attentions.{index}"] = f"{source}.{first + 2}"

    levels, layers = len(config.block_out_channels), config.layers_per_block
    for level in range(levels):
        # the first convolution comes before the levels, and each level ends with a downsampler
        start = 1 + level * (layers + 1)
        for index in range(layers):
            layer(f"down_blocks.{level}", index, f"input_blocks.{start + index}")
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{start + layers}.0.op"
        for index in range(layers + 1):
            layer(f"up_blocks.{level}", index, f"output_blocks.{level * (layers + 1) + index}")
        last = f"output_blocks.{level * (layers + 1) + layers}"
        entry = 3 if UP_BLOCKS[config.up_block_types[level]] else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"{last}.{entry}.conv"
    layer("mid_block", 0, "middle_block")
    layer("mid_block", 1, "middle_block", first=3)
    return {name: TensorSource(UNET + _renamed(name, modules)) for name in names}


def unet_aliases(config: UNetConfig, modules: Collection[str]) -> dict[str, str]:
    """Map the names that LoRA files may use for a UNet's modules to ours, without the name of the UNet itself.

    They are LVDM's names, and those of ModelScope's own code, which differ in two places.
    """
    table = unet_table(config, list(modules))
    aliases = {source.name.removeprefix(UNET): module for module, source in table.items()}
    for name, module in list(aliases.items()):
        if name.startswith("init_attn.0"):
            aliases[name.replace("init_attn.0", "input_blocks.0.1", 1)] = module
        elif name.endswith(".0.op"):
            aliases[f"{name.removesuffix('.0.op')}.op"] = module
    return aliases


def text_aliases(config: TextConfig, modules: Collection[str]) -> dict[str, str]:
    """Map the OpenCLIP names that LoRA files may use for a text encoder's modules to ours, where OpenCLIP has them."""
    table = text_table(
        config, [name for name in modules if not name.endswith((*FUSED_ORDER, "position_embedding"))]
    )
    return {source.name.removeprefix(TEXT): name for name, source in table.items()}


def vae_table(config: VAEConfig, names: list[str]) -> dict[str, TensorSource]:
    """Return the source of each of an autoencoder's parameters `names`."""
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    levels = len(config.block_out_channels)

    def block(own: str, source: str, inside: Mapping[str, str]) -> None:
        modules.update({f"{own}.{name}": f"{source}.{inside[name]}" for name in inside})

    for side in ("encoder", "decoder"):
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        block(f"{side}.mid_block.resnets.0", f"{side}.mid.block_1", VAE_RESNET)
        block(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", VAE_ATTENTION)
        block(f"{side}.mid_block.resnets.1", f"{side}.mid.block_2", VAE_RESNET)
    for level in range(levels):
        # LVDM numbers the levels of encoder and decoder by resolution
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for index in range(config.layers_per_block):
            block(f"encoder.down_blocks.{level}.resnets.{index}", f"{down}.block.{index}", VAE_RESNET)
        for index in range(config.layers_per_block + 1):
            block(f"decoder.up_blocks.{level}.resnets.{index}", f"{up}.block.{index}", VAE_RESNET)
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return {name: TensorSource(VAE + _renamed(name, modules)) for name in names}


def text_table(config: TextConfig, names: list[str]) -> dict[str, TensorSource]:
    """Return the source of each of a text encoder's parameters `names`."""
    modules = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.final_layer_norm": "ln_final",
    }
    table = {"text_model.embeddings.position_embedding.weight": TensorSource(f"{TEXT}positional_embedding")}
    for index in range(config.num_hidden_layers):
        own, source = f"text_model.encoder.layers.{index}", f"transformer.resblocks.{index}"
        modules |= {f"{own}.{name}": f"{source}.{TEXT_LAYER[name]}" for name in TEXT_LAYER}
        for third, name in enumerate(FUSED_ORDER):
            for kind in ("weight", "bias"):
                fused = TensorSource(f"{TEXT}{source}.attn.in_proj_{kind}", third)
                table[f"{own}.self_attn.{name}.{kind}"] = fused
    return {name: table.get(name) or TensorSource(TEXT + _renamed(name, modules)) for name in names}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """Replace the longest prefix of a parameter's name that `modules` has. Raises KeyError if it has none."""
    prefix = name
    while prefix not in modules:
        prefix, dot, _ = prefix.rpartition(".")
        if not dot:
            raise KeyError(name)
    return modules[prefix] + name[len(prefix) :]
