"""The layout in which Wan's authors published it, one file per network, and where it has each of our parameters.

The names come from Wan-Video/Wan2.1 (wan/modules/model.py, vae.py, t5.py). Single-transformer files for other programs
use the same names, sometimes with a prefix.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vinfinity.models.checkpoint import CheckpointPart, Shapes, TensorSource
from vinfinity.models.family import AUTOENCODER, TEXT_ENCODER, Network
from vinfinity.models.wan.names import original_parameter

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
# head widths, constants in the authors' models
HEAD_WIDTH, TEXT_HEAD_WIDTH = 128, 64
# layers of a level of the decoder: its resnets and its upsampler
LAYERS_PER_LEVEL = 4

RESNET = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
TEXT_LAYER = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


def vae_parameter(parameter: str) -> str:
    """Return the authors' name for a parameter of the autoencoder."""
    parameter = re.sub(
        rf"\.({'|'.join(RESNET)})\.(?=[a-z]+$)", lambda match: f".{RESNET[match[1]]}.", parameter
    )
    for pattern, own in (
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"\.down_blocks\.", ".downsamples."),
    ):
        parameter = re.sub(pattern, own, parameter)

    def number(match: re.Match[str]) -> str:
        level, layer = int(match[1]), LAYERS_PER_LEVEL - 1 if match[2] == "upsamplers" else int(match[3])
        return f".upsamples.{LAYERS_PER_LEVEL * level + layer}."

    return re.sub(r"\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.", number, parameter)


def text_parameter(parameter: str) -> str:
    """Return the authors' name for a parameter of the text encoder."""
    fixed = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    if parameter in fixed:
        return fixed[parameter]
    block, number, layer, kind = re.fullmatch(r"encoder\.(block)\.(\d+)\.(.+)\.([a-z]+)", parameter).groups()  # type: ignore[union-attr]
    return f"{block}s.{number}.{TEXT_LAYER[layer]}.{kind}"


def _count(shapes: Shapes) -> int:
    """Count the blocks."""
    return 1 + max(int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name)))


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """Make the config.json of a transformer with these tensors."""
    width, channels, *patch = shapes["patch_embedding.weight"]
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(patch),
        "num_attention_heads": width // HEAD_WIDTH,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": channels,
        "out_channels": shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_layers": _count(shapes),
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
        "eps": 1e-6,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Make the config.json of an autoencoder with these tensors. Wan 2.1 supplies what they do not show."""
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": shapes["encoder.conv1.weight"][0],
        "z_dim": shapes["conv2.weight"][0],
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 8,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Make the config.json of a text encoder with these tensors."""
    vocabulary, width = shapes["token_embedding.weight"]
    buckets, heads = shapes["blocks.0.pos_embedding.embedding.weight"]
    return {
        "model_type": "umt5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes["blocks.0.attn.q.weight"][0] // heads,
        "d_ff": shapes["blocks.0.ffn.fc1.weight"][0],
        "num_layers": _count(shapes),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


@dataclass(frozen=True)
class Layout:
    """One network in the authors' layout.

    part: the network's folder. marker: a tensor that only this network has. config: makes config.json from the shapes
    of the tensors. name: turns the name of one of our parameters into the authors' name.
    """

    part: str
    marker: str
    config: Callable[[Shapes], dict[str, Any]]
    name: Callable[[str], str]


LAYOUTS = (
    Layout("transformer", "blocks.0.self_attn.q.weight", transformer_config, original_parameter),
    Layout(AUTOENCODER, "decoder.upsamples.0.residual.0.gamma", vae_config, vae_parameter),
    Layout(TEXT_ENCODER, "blocks.0.pos_embedding.embedding.weight", text_config, text_parameter),
)


def read_original(shapes: Shapes, networks: Mapping[str, Network]) -> tuple[CheckpointPart, list[str]] | None:
    """Read the network in a file of the authors' layout, and its faults; return None for a file in another layout.

    shapes: the shape of each tensor in the file. Raises ValueError if the architecture is not supported.
    """
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in shapes)), "")
    bare = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    layout = next((layout for layout in LAYOUTS if layout.marker in bare), None)
    if layout is None:
        return None
    if any(name.startswith(("img_emb.", "vace_", "control_adapter")) or ".k_img." in name for name in bare):
        raise ValueError("is an image-to-video or editing model; only text-to-video models are supported")
    try:
        config = layout.config(bare)
    except (KeyError, ValueError) as error:
        raise ValueError(f"lacks {error}") from None
    network = networks[layout.part]
    with torch.device("meta"):
        own = {
            name: tuple(x.shape)
            for name, x in network.build(network.read_config(config)).state_dict().items()
        }
    sources = {name: layout.name(name) for name in own}
    faults = [f"missing {source}" for source in sources.values() if source not in bare]
    faults += [f"unexpected {name}" for name in bare if name not in sources.values()]
    faults += [
        f"{source} has {bare[source]}, not {own[name]}"
        for name, source in sources.items()
        if source in bare and _size(bare[source]) != _size(own[name])
    ]
    found = {name: TensorSource(prefix + source) for name, source in sources.items()}
    return CheckpointPart(layout.part, config, found, own), faults


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
