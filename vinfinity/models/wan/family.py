"""Wan 2.1 text-to-video: transformer, causal autoencoder, UMT5 text encoder. Importing this does not load torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vinfinity.errors import WeightsError
from vinfinity.models.family import (
    AUTOENCODER,
    TEXT_ENCODER,
    Configs,
    DenoiserTraits,
    Half,
    Network,
    PublishedModel,
    TextTokenizer,
    Traits,
)
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.wan.configs import TransformerConfig
from vinfinity.models.wan.names import module_aliases
from vinfinity.models.wan.published import COMMON_FILES, PUBLISHED
from vinfinity.models.wan.text_config import UMT5Config, text_name
from vinfinity.models.wan.vae_config import WanVAEConfig
from vinfinity.system.safetensors import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vinfinity.models.checkpoint import Checkpoint, CheckpointPart, Distillation, Shapes
    from vinfinity.models.frame_text import FrameText
    from vinfinity.models.network_call import CallOptions, NetworkCall
    from vinfinity.models.wan.transformer import Transformer
    from vinfinity.parallel.context import TemporalContext

TRANSFORMER = "transformer"
# number of tokens per text, in training and in every pipeline
TEXT_LENGTH = 512
TRAINED_FRAMES = 81
# Samplers for the schedulers that model folders name; others get unipc.
SCHEDULER_SAMPLERS = {
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmsolver++",
}
# Keys in model_index.json that tell other models of the same name apart.
UNSUPPORTED_MODELS: Mapping[str, str] = {
    "boundary_ratio": "a model of Wan 2.2, which has two transformers",
    "transformer_2": "a model of Wan 2.2, which has two transformers",
    "expand_timesteps": "a model of Wan 2.2, which has a timestep per token",
    "image_encoder": "an image-to-video model",
}


def _transformer(config: TransformerConfig) -> nn.Module:
    from vinfinity.models.wan.transformer import Transformer

    return Transformer(config)


def _autoencoder(config: WanVAEConfig) -> nn.Module:
    from vinfinity.models.wan.vae import AutoencoderKLWan

    return AutoencoderKLWan(config)


def _text_encoder(config: UMT5Config) -> nn.Module:
    from vinfinity.models.wan.umt5 import TextEncoder

    return TextEncoder(config)


def _transformer_aliases(config: TransformerConfig, modules: Collection[str]) -> Mapping[str, str]:
    return module_aliases(modules)


NETWORKS: Mapping[str, Network] = {
    TRANSFORMER: Network(
        TransformerConfig.from_dict,
        _transformer,
        stem="diffusion_pytorch_model",
        keep_fp32=("time_embedder", "scale_shift_table", "norm2"),
        shown=("_class_name", "num_layers", "num_attention_heads", "ffn_dim"),
        lora_prefixes=(
            "transformer.",
            "diffusion_model.",
            "model.diffusion_model.",
            "pipe.dit.",
            "lora_unet__",
            "lora_unet_",
            "lora_transformer_",
        ),
        aliases=_transformer_aliases,
    ),
    AUTOENCODER: Network(
        WanVAEConfig.from_dict,
        _autoencoder,
        stem="diffusion_pytorch_model",
        always_fp32=True,
        shown=("_class_name", "base_dim", "z_dim"),
    ),
    TEXT_ENCODER: Network(
        UMT5Config.from_dict,
        _text_encoder,
        stem="model",
        rename=text_name,
        shown=("model_type", "d_model", "num_layers"),
    ),
}


def _text_parameters(config: UMT5Config) -> int:
    inner = config.num_heads * config.d_kv
    layer = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff + 2 * config.d_model
    bias = config.relative_attention_num_buckets * config.num_heads
    return config.vocab_size * config.d_model + config.num_layers * (layer + bias) + config.d_model


@dataclass(frozen=True)
class WanFamily:
    """Wan 2.1 text-to-video, 1.3B and 14B: see `Family`."""

    name: str = "wan"
    denoiser: str = TRANSFORMER
    denoiser_class: str = "WanTransformer3D"
    pipeline_class: str = "WanPipeline"
    trained_frames: int = TRAINED_FRAMES
    half: Half = "bf16"
    original_tokenizer: str = "google/umt5-xxl"
    flow: bool = True
    samplers: tuple[str, ...] = ("unipc", "euler", "dpmsolver++", "sde-dpmsolver++")

    @property
    def networks(self) -> Mapping[str, Network]:
        return NETWORKS

    @property
    def decoders(self) -> Mapping[str, Network]:
        return {"AutoencoderKLWan": NETWORKS[AUTOENCODER]}

    @property
    def published(self) -> Mapping[str, PublishedModel]:
        return PUBLISHED

    @property
    def published_files(self) -> Mapping[str, Mapping[str, object]]:
        return COMMON_FILES

    def traits(self, configs: Configs) -> Traits:
        transformer: TransformerConfig = configs[TRANSFORMER]
        vae: WanVAEConfig = configs[AUTOENCODER]
        text: UMT5Config = configs[TEXT_ENCODER]
        geometry = LatentGeometry(
            channels=transformer.in_channels,
            downscale=vae.downscale,
            time_downscale=vae.time_downscale,
            multiple=transformer.patch_size[1],
        )
        return Traits(
            geometry=geometry,
            text_length=TEXT_LENGTH,
            denoiser=self.denoiser_traits(transformer),
            text_parameters=_text_parameters(text),
        )

    def denoiser_traits(self, config: TransformerConfig) -> DenoiserTraits:
        width, area = config.width, config.patch_size[1] ** 2
        block = 8 * width**2 + 2 * width * config.ffn_dim + 32 * width + config.ffn_dim
        outside = width * (10 * width + config.text_dim + config.freq_dim + 8 * config.in_channels + 32)
        return DenoiserTraits(
            channels=config.in_channels,
            text_width=config.text_dim,
            takes_fps=False,
            guidance_width=None,
            levels=1,
            multiple=config.patch_size[1],
            hidden=-(-width // area),
            # hidden states, keys and values of all frames
            widest=-(-max(4 * width, config.ffn_dim) // area),
            parameters=config.num_layers * block + outside,
            joint=True,
        )

    def defaults(self, configs: Configs, schedule: Mapping[str, Any]) -> dict[str, object]:
        sampler = SCHEDULER_SAMPLERS.get(str(schedule.get("_class_name", "")), "unipc")
        if sampler == "dpmsolver++" and schedule.get("algorithm_type") == "sde-dpmsolver++":
            sampler = "sde-dpmsolver++"
        return {
            "frames": TRAINED_FRAMES,
            "size": "832x480",
            "fps": 16,
            "steps": 50,
            "sampler": sampler,
            "guidance": 5.0,
            "negative": "",
            # 9 near frames and 12 anchors: each softmax has the keys of 21 latent frames, as in training
            "attention.local": 4,
            "attention.anchors": 12,
            "attention.schedule": [{"above": -1, "local": 0.0, "anchors": 0.0}],
            "attention.moving_anchors": True,
        }

    def check_parts(self, configs: Configs, folder: Path) -> None:
        index = folder / "model_index.json"
        values = read_json(index) if index.exists() else {}
        for key, kind in UNSUPPORTED_MODELS.items():
            value = values.get(key)
            if value not in (None, False) and value != [None, None]:
                problem = f"is {kind}; only text-to-video models of Wan 2.1 are supported"
                raise WeightsError("model", index, "use wan2.1-1.3b or wan2.1-14b", problem=problem)
        transformer: TransformerConfig = configs[TRANSFORMER]
        vae: WanVAEConfig = configs[AUTOENCODER]
        text: UMT5Config = configs[TEXT_ENCODER]
        for part, makes, needs in (
            (TEXT_ENCODER, text.d_model, transformer.text_dim),
            (AUTOENCODER, vae.latent_channels, transformer.in_channels),
        ):
            if makes != needs:
                remedy = "use a matching text encoder, autoencoder and transformer"
                problem = f"has {makes} channels, but the transformer takes {needs}"
                raise WeightsError("model", folder / part, remedy, problem=problem)

    def load_tokenizer(self, folder: Path, *, length: int) -> TextTokenizer:
        from vinfinity.models.wan.tokenizer import load_tokenizer

        return load_tokenizer(folder, length=length)

    def encode_text(self, encoder: nn.Module, ids: Tensor, used: Sequence[int]) -> Tensor:
        states: Tensor = encoder(ids, used)
        return states

    def network_call(
        self,
        denoiser: nn.Module,
        text: FrameText,
        context_at: Callable[[float], TemporalContext],
        options: CallOptions,
    ) -> NetworkCall:
        from vinfinity.models.wan.call import WanCall

        return WanCall(cast("Transformer", denoiser), text, context_at, options)

    def compile(self, denoiser: nn.Module) -> None:
        from vinfinity.models.wan.transformer import compile_layers

        compile_layers(cast("Transformer", denoiser))

    def read_checkpoint(self, tensors: Mapping[str, Tensor]) -> Checkpoint | None:
        return None

    def read_part(self, shapes: Shapes) -> tuple[CheckpointPart, list[str]] | None:
        from vinfinity.models.wan.original import read_original

        return read_original(shapes, NETWORKS)

    def read_distillation(self, factors: Sequence[Tensor], config: Mapping[str, Any]) -> Distillation:
        raise ValueError("unnamed factors belong to T2V-Turbo")


WAN = WanFamily()
