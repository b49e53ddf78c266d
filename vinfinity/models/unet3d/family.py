"""3-D UNets with Stable Diffusion's autoencoder and CLIP's text encoder. Importing this does not load torch."""

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
    Traits,
)
from vinfinity.models.geometry import LatentGeometry
from vinfinity.models.unet3d.configs import TextConfig, TinyConfig, UNetConfig, VAEConfig
from vinfinity.models.unet3d.names import text_module_aliases, text_name, unet_entries, vae_name
from vinfinity.models.unet3d.published import COMMON_FILES, PUBLISHED

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vinfinity.models.checkpoint import Checkpoint, CheckpointPart, Distillation, Shapes
    from vinfinity.models.frame_text import FrameText
    from vinfinity.models.network_call import CallOptions, NetworkCall
    from vinfinity.models.unet3d.tokenizer import CLIPTokenizer
    from vinfinity.models.unet3d.unet import UNet
    from vinfinity.parallel.context import TemporalContext

# Samplers for the schedulers that diffusers' folders name, and steps that suit them; others get dpmsolver++ and 25.
SCHEDULER_SAMPLERS = {"DDIMScheduler": "ddim", "DDIMParallelScheduler": "ddim", "LCMScheduler": "lcm"}
SAMPLER_STEPS = {"ddim": 50, "lcm": 4}


def _unet(config: UNetConfig) -> nn.Module:
    from vinfinity.models.unet3d.unet import UNet

    return UNet(config)


def _autoencoder(config: VAEConfig) -> nn.Module:
    from vinfinity.models.unet3d.vae import AutoencoderKL

    return AutoencoderKL(config)


def _tiny_autoencoder(config: TinyConfig) -> nn.Module:
    from vinfinity.models.unet3d.taesd import AutoencoderTiny

    return AutoencoderTiny(config)


def _text_encoder(config: TextConfig) -> nn.Module:
    from vinfinity.models.unet3d.clip import TextEncoder

    return TextEncoder(config)


def _unet_aliases(config: UNetConfig, modules: Collection[str]) -> Mapping[str, str]:
    from vinfinity.models.unet3d.lvdm import unet_aliases

    return unet_aliases(config, modules)


def _text_aliases(config: TextConfig, modules: Collection[str]) -> Mapping[str, str]:
    from vinfinity.models.unet3d.lvdm import text_aliases

    return text_aliases(config, modules) | text_module_aliases(modules)


NETWORKS: Mapping[str, Network] = {
    "unet": Network(
        UNetConfig.from_dict,
        _unet,
        stem="diffusion_pytorch_model",
        # half precision would round different timesteps to the same value
        keep_fp32=("time_embedding", "fps_embedding"),
        shown=("_class_name", "block_out_channels", "cross_attention_dim", "fps_cond", "time_cond_proj_dim"),
        lora_prefixes=("unet.", "lora_unet_", "model.diffusion_model.", "diffusion_model."),
        aliases=_unet_aliases,
        implied=unet_entries,
    ),
    AUTOENCODER: Network(
        VAEConfig.from_dict,
        _autoencoder,
        stem="diffusion_pytorch_model",
        rename=vae_name,
        always_fp32=True,
        shown=("_class_name", "block_out_channels", "scaling_factor"),
    ),
    TEXT_ENCODER: Network(
        TextConfig.from_dict,
        _text_encoder,
        stem="model",
        rename=text_name,
        shown=("model_type", "hidden_size", "num_hidden_layers"),
        lora_prefixes=("text_encoder.", "lora_te_", "lora_te1_", "cond_stage_model.model."),
        aliases=_text_aliases,
    ),
}


@dataclass(frozen=True)
class UNet3DFamily:
    """ModelScope, Zeroscope, VideoCrafter2, T2V-Turbo and the embedded model `mini`: see `Family`."""

    name: str = "unet3d"
    denoiser: str = "unet"
    # conversions of VideoCrafter2 have their own classes
    denoiser_class: str = "UNet"
    pipeline_class: str = "TextToVideoSDPipeline"
    trained_frames: int = 16
    half: Half = "fp16"
    original_tokenizer: str = ""
    flow: bool = False
    samplers: tuple[str, ...] = ("ddim", "dpmsolver++", "sde-dpmsolver++", "videocrafter2", "lcm")

    @property
    def networks(self) -> Mapping[str, Network]:
        return NETWORKS

    @property
    def decoders(self) -> Mapping[str, Network]:
        tiny = Network(TinyConfig.from_dict, _tiny_autoencoder, stem="diffusion_pytorch_model")
        return {"AutoencoderKL": NETWORKS[AUTOENCODER], "AutoencoderTiny": tiny}

    @property
    def published(self) -> Mapping[str, PublishedModel]:
        return PUBLISHED

    @property
    def published_files(self) -> Mapping[str, Mapping[str, object]]:
        return COMMON_FILES

    def traits(self, configs: Configs) -> Traits:
        unet: UNetConfig = configs["unet"]
        vae: VAEConfig = configs[AUTOENCODER]
        text: TextConfig = configs[TEXT_ENCODER]
        return Traits(
            geometry=LatentGeometry(channels=unet.in_channels, downscale=vae.downscale),
            text_length=text.max_position_embeddings,
            denoiser=self.denoiser_traits(unet),
        )

    def denoiser_traits(self, config: UNetConfig) -> DenoiserTraits:
        widths = config.block_out_channels
        # transformer_in has eight heads, however wide the level is
        widest = max(*widths, 8 * config.attention_head_dim)
        return DenoiserTraits(
            channels=config.in_channels,
            text_width=config.cross_attention_dim,
            takes_fps=config.fps_cond,
            guidance_width=config.time_cond_proj_dim,
            levels=len(widths),
            multiple=2 ** (len(widths) - 1),
            hidden=widths[0],
            widest=widest,
            parameters=256 * widest**2 * len(widths) * (config.layers_per_block + 1),
        )

    def defaults(self, configs: Configs, schedule: Mapping[str, Any]) -> dict[str, object]:
        side = configs["unet"].sample_size or 32
        height, width = side if isinstance(side, tuple) else (side, side)
        downscale = configs[AUTOENCODER].downscale
        sampler = SCHEDULER_SAMPLERS.get(str(schedule.get("_class_name", "")), "dpmsolver++")
        if schedule.get("algorithm_type") == "sde-dpmsolver++":
            sampler = "sde-dpmsolver++"
        return {
            "size": f"{width * downscale}x{height * downscale}",
            "fps": 8,
            "steps": SAMPLER_STEPS.get(sampler, 25),
            "sampler": sampler,
            "guidance": 9.0,
            "negative": "",
        }

    def check_parts(self, configs: Configs, folder: Path) -> None:
        unet: UNetConfig = configs["unet"]
        vae: VAEConfig = configs[AUTOENCODER]
        text: TextConfig = configs[TEXT_ENCODER]
        for part, makes, needs in (
            (TEXT_ENCODER, text.hidden_size, unet.cross_attention_dim),
            (AUTOENCODER, vae.latent_channels, unet.in_channels),
        ):
            if makes != needs:
                remedy = "use a matching text encoder, autoencoder and UNet"
                problem = f"has {makes} channels, but the UNet takes {needs}"
                raise WeightsError("model", folder / part, remedy, problem=problem)

    def load_tokenizer(self, folder: Path, *, length: int) -> CLIPTokenizer:
        from vinfinity.models.unet3d.tokenizer import load_tokenizer

        return load_tokenizer(folder, length=length)

    def encode_text(self, encoder: nn.Module, ids: Tensor, used: Sequence[int]) -> Tensor:
        # these models also attend to the states of padding
        states: Tensor = encoder(ids)
        return states

    def network_call(
        self,
        denoiser: nn.Module,
        text: FrameText,
        context_at: Callable[[float], TemporalContext],
        options: CallOptions,
    ) -> NetworkCall:
        from vinfinity.models.unet3d.call import UNetCall

        return UNetCall(cast("UNet", denoiser), text, context_at, options)

    def compile(self, denoiser: nn.Module) -> None:
        from vinfinity.models.unet3d.unet import compile_blocks

        compile_blocks(cast("UNet", denoiser))

    def read_checkpoint(self, tensors: Mapping[str, Tensor]) -> Checkpoint | None:
        from vinfinity.models.unet3d.lvdm import is_lvdm, read_lvdm

        return read_lvdm(tensors) if is_lvdm(tensors) else None

    def read_part(self, shapes: Shapes) -> tuple[CheckpointPart, list[str]] | None:
        return None

    def read_distillation(self, factors: Sequence[Tensor], config: Mapping[str, Any]) -> Distillation:
        from vinfinity.models.unet3d.turbo import read_turbo

        return read_turbo(factors, config)


UNET3D = UNet3DFamily()
