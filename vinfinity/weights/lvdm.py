"""LVDM's layout: the single checkpoint in which VideoCrafter2 was published, and where each of its tensors goes.

Every tensor of the file is accounted for: the tables below name the source of each parameter of ours, `UNUSED` and
`unused_text` what is left behind on purpose; whatever else a file holds, or lacks, is a fault. Facts about the names
come from AILab-CVC/VideoCrafter (lvdm/modules/networks/openaimodel3d.py, ae_modules.py, encoders/condition.py).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vinfinity.models.unet3d.clip import TextConfig, TextEncoder
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.models.unet3d.vae import AutoencoderKL, VAEConfig

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
GROUPS = 32  # of every GroupNorm, a constant of LVDM's code
HEADS_IN = 8  # heads of the temporal attention that comes first, another one
TEXT_HEAD_WIDTH = 64  # of every OpenCLIP text tower

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# Our modules inside a block and theirs.
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
FUSED = ("q_proj", "k_proj", "v_proj")  # the order of rows in OpenCLIP's attn.in_proj

# What training and LVDM's own sampler need: the noise schedule's products, which follow from the betas.
UNUSED = frozenset(
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


@dataclass(frozen=True)
class Piece:
    """Where a parameter comes from. third: 0, 1 or 2 of the source's rows; None takes all of them."""

    source: str
    third: int | None = None


@dataclass(frozen=True)
class Part:
    """One part of a model that a checkpoint holds.

    name: its folder. stem: of its weight file. config: for its config.json. pieces, shapes: by our parameters' names.
    """

    name: str
    stem: str
    config: Mapping[str, Any]
    pieces: Mapping[str, Piece]
    shapes: Shapes


def is_lvdm(names: Mapping[str, object]) -> bool:
    """Whether these tensors are a whole LVDM checkpoint."""
    return any(name.startswith(UNET) for name in names)


def lvdm_parts(shapes: Shapes) -> tuple[Part, ...]:
    """The parts of a checkpoint with tensors of these shapes.

    Raises ValueError where their architecture is none that is known here.
    """
    unet, vae, text = unet_config(shapes), vae_config(shapes), text_config(shapes)
    with torch.device("meta"):
        networks: tuple[nn.Module, ...] = (UNet(unet), AutoencoderKL(vae), TextEncoder(text))
    unet_class, vae_class, text_class = (
        {"_class_name": "UNet3DConditionModel"},
        {
            "_class_name": "AutoencoderKL",
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.block_out_channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.block_out_channels),
        },
        {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    )
    names = [list(network.state_dict()) for network in networks]
    return tuple(
        Part(
            name=name,
            stem=stem,
            config=kind | dataclasses.asdict(config),
            pieces=pieces,
            shapes={key: tuple(tensor.shape) for key, tensor in network.state_dict().items()},
        )
        for name, stem, kind, config, pieces, network in (
            ("unet", "diffusion_pytorch_model", unet_class, unet, unet_table(unet, names[0]), networks[0]),
            ("vae", "diffusion_pytorch_model", vae_class, vae, vae_table(vae, names[1]), networks[1]),
            ("text_encoder", "model", text_class, text, text_table(text, names[2]), networks[2]),
        )
    )


def lvdm_faults(parts: tuple[Part, ...], shapes: Shapes) -> list[str]:
    """What a checkpoint lacks, holds too much, or holds in another shape, by the names in the file."""
    faults, used = [], set(UNUSED) | unused_text(shapes)
    for part in parts:
        for name, piece in part.pieces.items():
            used.add(piece.source)
            wanted = part.shapes[name]
            if piece.third is not None:
                wanted = (3 * wanted[0], *wanted[1:])
            found = shapes.get(piece.source)
            if found is None:
                faults.append(f"missing {piece.source}")
            elif _bare(found) != _bare(wanted):
                faults.append(f"{piece.source} is {shown(found)}, not {shown(wanted)}")
    # the three thirds of one tensor are one fault
    return [*dict.fromkeys(faults), *(f"unexpected {name}" for name in shapes if name not in used)]


def take(part: Part, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of one part, one after the other, from a checkpoint without faults.

    Convolutions with a kernel of one become linear layers; fused rows are split.
    """
    for name, piece in part.pieces.items():
        tensor = tensors[piece.source]
        if piece.third is not None:
            tensor = tensor.chunk(3)[piece.third]
        yield name, tensor.reshape(part.shapes[name])


def shown(shape: Shape) -> str:
    """A shape as it stands in messages."""
    return "x".join(map(str, shape)) or "scalar"


def _bare(shape: Shape) -> Shape:
    """A shape without the ones at its end: a linear layer and a convolution with a kernel of one have the same."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


# ---- the architecture, read from shapes ----


def unet_config(shapes: Shapes) -> UNetConfig:
    """The UNet's architecture. Raises ValueError."""

    def shape(name: str) -> Shape:
        if f"{UNET}{name}" not in shapes:
            raise ValueError(f"{UNET}{name}: is missing; only VideoCrafter2's kind of UNet is known")
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
        raise ValueError(f"{UNET}input_blocks: levels of {layers} layers; only equal levels are known")
    condition = shapes.get(f"{UNET}time_cond_proj.weight")
    return UNetConfig(
        in_channels=shape("input_blocks.0.0.weight")[1],
        out_channels=shape("out.2.weight")[0],
        down_block_types=tuple("CrossAttnDownBlock3D" if has else "DownBlock3D" for has in attention),
        up_block_types=tuple("CrossAttnUpBlock3D" if has else "UpBlock3D" for has in attention[::-1]),
        block_out_channels=tuple(widths),
        layers_per_block=layers[0],
        norm_num_groups=GROUPS,
        cross_attention_dim=shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        attention_head_dim=shape("init_attn.0.proj_in.weight")[0] // HEADS_IN,
        time_cond_proj_dim=None if condition is None else condition[1],
        fps_cond=f"{UNET}fps_embedding.0.weight" in shapes,
    )


def vae_config(shapes: Shapes) -> VAEConfig:
    """The autoencoder's architecture. Raises ValueError."""
    widths: list[int] = []
    layers = 0
    while (name := f"{VAE}encoder.down.{len(widths)}.block.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    while f"{VAE}encoder.down.0.block.{layers}.conv1.weight" in shapes:
        layers += 1
    ends = [f"{VAE}{name}.weight" for name in ("encoder.conv_in", "decoder.conv_out", "post_quant_conv")]
    lost = [name for name in ends if name not in shapes]
    if not widths or lost:
        lacking = lost[0] if lost else f"{VAE}encoder.down.0.block.0.conv1.weight"
        raise ValueError(f"{lacking}: is missing; the autoencoder is none that is known")
    return VAEConfig(
        in_channels=shapes[ends[0]][1],
        out_channels=shapes[ends[1]][0],
        latent_channels=shapes[ends[2]][1],
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        norm_num_groups=GROUPS,
    )


def text_config(shapes: Shapes) -> TextConfig:
    """The text tower's architecture without its last layer, which VideoCrafter2 does not use. Raises ValueError."""
    needed = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")
    for name in needed:
        if f"{TEXT}{name}" not in shapes:
            raise ValueError(f"{TEXT}{name}: is missing; only OpenCLIP's text tower is known")
    tokens, positions, inner = (shapes[f"{TEXT}{name}"] for name in needed)
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
    """The text tower's tensors that the penultimate layer's states do not depend on."""
    last = f"{TEXT}transformer.resblocks.{_text_layers(shapes) - 1}."
    ends = {f"{TEXT}{name}" for name in ("text_projection", "logit_scale", "attn_mask")}
    return ends | {name for name in shapes if name.startswith(last)}


# ---- tables: our parameter -> its source ----


def unet_table(config: UNetConfig, names: list[str]) -> dict[str, Piece]:
    """The sources of a UNet's parameters `names`."""
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

    def layer(block: str, index: int, theirs: str, *, first: int = 0) -> None:
        """Resnet, temporal convolution and both transformers of one layer, from the `first` entry of theirs on."""
        modules.update(
            {f"{block}.resnets.{index}.{own}": f"{theirs}.{first}.{name}" for own, name in RESNET.items()}
        )
        modules[f"{block}.temp_convs.{index}"] = f"{theirs}.{first}.temopral_conv"  # sic
        modules[f"{block}.attentions.{index}"] = f"{theirs}.{first + 1}"
        modules[f"{block}.temp_attentions.{index}"] = f"{theirs}.{first + 2}"

    levels, layers = len(config.block_out_channels), config.layers_per_block
    for level in range(levels):
        start = 1 + level * (layers + 1)  # after the first convolution; each level ends with a downsampler
        for index in range(layers):
            layer(f"down_blocks.{level}", index, f"input_blocks.{start + index}")
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{start + layers}.0.op"
        for index in range(layers + 1):
            layer(f"up_blocks.{level}", index, f"output_blocks.{level * (layers + 1) + index}")
        last = f"output_blocks.{level * (layers + 1) + layers}"
        place = 3 if config.up_block_types[level].startswith("CrossAttn") else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"{last}.{place}.conv"
    layer("mid_block", 0, "middle_block")
    layer("mid_block", 1, "middle_block", first=3)
    return {name: Piece(UNET + _renamed(name, modules)) for name in names}


def vae_table(config: VAEConfig, names: list[str]) -> dict[str, Piece]:
    """The sources of an autoencoder's parameters `names`."""
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    levels = len(config.block_out_channels)

    def block(own: str, theirs: str, inside: Mapping[str, str]) -> None:
        modules.update({f"{own}.{name}": f"{theirs}.{inside[name]}" for name in inside})

    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        block(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", VAE_RESNET)
        block(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", VAE_ATTENTION)
        block(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", VAE_RESNET)
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"  # theirs counts by resolution
        for index in range(config.layers_per_block):
            block(f"encoder.down_blocks.{level}.resnets.{index}", f"{down}.block.{index}", VAE_RESNET)
        for index in range(config.layers_per_block + 1):
            block(f"decoder.up_blocks.{level}.resnets.{index}", f"{up}.block.{index}", VAE_RESNET)
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return {name: Piece(VAE + _renamed(name, modules)) for name in names}


def text_table(config: TextConfig, names: list[str]) -> dict[str, Piece]:
    """The sources of a text encoder's parameters `names`."""
    modules = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.final_layer_norm": "ln_final",
    }
    table = {"text_model.embeddings.position_embedding.weight": Piece(f"{TEXT}positional_embedding")}
    for index in range(config.num_hidden_layers):
        own, theirs = f"text_model.encoder.layers.{index}", f"transformer.resblocks.{index}"
        modules |= {f"{own}.{name}": f"{theirs}.{TEXT_LAYER[name]}" for name in TEXT_LAYER}
        for third, name in enumerate(FUSED):
            for kind in ("weight", "bias"):
                source = f"{TEXT}{theirs}.attn.in_proj_{kind}"
                table[f"{own}.self_attn.{name}.{kind}"] = Piece(source, third)
    return {name: table.get(name) or Piece(TEXT + _renamed(name, modules)) for name in names}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """A parameter's name with the longest prefix that `modules` knows replaced. Raises KeyError where none is known."""
    prefix = name
    while prefix not in modules:
        prefix, dot, _ = prefix.rpartition(".")
        if not dot:
            raise KeyError(name)
    return modules[prefix] + name[len(prefix) :]
