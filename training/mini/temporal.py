"""The denoiser, and its temporal layers under control: bypassed, started as identity, computed fast.

diffusers' modules stay as they are (their weights are what is saved); only the `forward` of the temporal
layers of one network is replaced while it trains.
"""

from functools import partial

import torch.nn.functional as F
import world
from diffusers import DDPMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import (
    TransformerTemporalModel,
    TransformerTemporalModelOutput,
)
from torch import Tensor, nn

WIDTHS = (48, 96, 128)
HEAD = 8
TEXT_WIDTH = 96
FACTOR = 8  # pixels a latent cell


def build_unet() -> UNet3DConditionModel:
    """Return the untrained denoiser: latents (b, 4, f, 10, 16), text states (b, 16, 96)."""
    levels = len(WIDTHS)
    return UNet3DConditionModel(
        sample_size=(world.HEIGHT // FACTOR, world.WIDTH // FACTOR),
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock3D",) + ("CrossAttnDownBlock3D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock3D",) * (levels - 1) + ("UpBlock3D",),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEAD,
        norm_num_groups=16,
    )


def build_scheduler() -> DDPMScheduler:
    """Return the noise schedule: scaled linear betas with zero terminal SNR, v-prediction, trailing timesteps."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def temporal_layers(unet: UNet3DConditionModel) -> list[nn.Module]:
    """All layers that mix frames."""
    return [m for m in unet.modules() if isinstance(m, TemporalConvLayer | TransformerTemporalModel)]


def temporal_parameters(unet: UNet3DConditionModel) -> set[int]:
    """Return the ids of the parameters of the layers that mix frames."""
    return {id(p) for layer in temporal_layers(unet) for p in layer.parameters()}


def start_as_identity(unet: UNet3DConditionModel) -> None:
    """Zero the last map of every temporal layer, so that the network treats frames one by one."""
    for layer in temporal_layers(unet):
        last = layer.conv4[-1] if isinstance(layer, TemporalConvLayer) else layer.proj_out
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def _skip_conv(hidden: Tensor, num_frames: int = 1) -> Tensor:
    return hidden


def _skip_attention(
    hidden: Tensor, *args: object, return_dict: bool = True, **kwargs: object
) -> tuple[Tensor] | TransformerTemporalModelOutput:
    return TransformerTemporalModelOutput(sample=hidden) if return_dict else (hidden,)


def _fast_conv(layer: TemporalConvLayer, hidden: Tensor, num_frames: int = 1) -> Tensor:
    """TemporalConvLayer.forward with 2-D convolutions over (frame, place): 3-D ones are slow on CPUs."""
    n, c, h, w = hidden.shape
    x = hidden.view(n // num_frames, num_frames, c, h * w).transpose(1, 2).contiguous()
    y = x
    for block in (layer.conv1, layer.conv2, layer.conv3, layer.conv4):
        conv = block[-1]
        y = F.conv2d(F.silu(block[0](y)), conv.weight.squeeze(-1), conv.bias, padding=(1, 0))
    return hidden + y.transpose(1, 2).reshape(n, c, h, w)


def prepare(unet: UNet3DConditionModel, *, temporal: bool) -> None:
    """Make the network ready: no dropout, plain attention on a CPU, temporal layers on or bypassed."""
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    # on CPUs the fused kernel is several times slower than matrix products for heads this small
    unet.set_attn_processor(AttnProcessor() if unet.device.type == "cpu" else AttnProcessor2_0())
    for layer in temporal_layers(unet):
        if isinstance(layer, TemporalConvLayer):
            layer.forward = partial(_fast_conv, layer) if temporal else _skip_conv
        elif not temporal:
            layer.forward = _skip_attention
        elif "forward" in vars(layer):
            del layer.forward
