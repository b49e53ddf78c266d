"""VideoCrafter2 with the layout and arithmetic of its authors' code, at any width: the reference for `convert`.

Written from the published definitions (AILab-CVC/VideoCrafter: lvdm/modules/networks/openaimodel3d.py and
ae_modules.py, lvdm/modules/attention.py), and only for the options in configs/inference_t2v_512_v2.0.yaml. Parameter
names, the order of modules and the axes that they work on are those of the original. Videos are (b, c, f, h, w).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features of timesteps, (b, width)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int, head: int, context: int | None = None) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context or width, inner, bias=False)
        self.to_v = nn.Linear(context or width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width), nn.Dropout(0.0), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, head: int, context: int | None) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, heads, head)
        self.ff = FeedForward(width)
        self.attn2 = CrossAttention(width, heads, head, context)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, heads: int, head: int, context: int) -> None:
        super().__init__()
        inner = heads * head
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList([Block(inner, heads, head, context)])
        self.proj_out = nn.Linear(inner, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x: (b·f, c, h, w), context: (b·f, tokens, width)."""
        y = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        y = self.proj_out(self.transformer_blocks[0](y, context))
        return x + y.transpose(1, 2).reshape(x.shape)


class TemporalTransformer(nn.Module):
    """linear: whether the projections are linear layers; in the first transformer they are convolutions of size 1."""

    def __init__(self, channels: int, heads: int, head: int, *, linear: bool) -> None:
        super().__init__()
        inner, self.linear = heads * head, linear
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv1d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList([Block(inner, heads, head, None)])
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, f, h, w)."""
        b, _, _, h, w = x.shape
        y = self.norm(x).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (b·h·w, c, f)
        y = self.proj_in(y.transpose(1, 2)) if self.linear else self.proj_in(y).transpose(1, 2)
        y = self.transformer_blocks[0](y)
        y = self.proj_out(y).transpose(1, 2) if self.linear else self.proj_out(y.transpose(1, 2))
        return x + y.unflatten(0, (b, h, w)).permute(0, 3, 4, 1, 2)


class TemporalConvBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for index in range(1, 5):
            layers: list[nn.Module] = [nn.GroupNorm(32, channels), nn.SiLU()]
            layers += [nn.Dropout(0.1)] if index > 1 else []
            layers += [nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))]
            setattr(self, f"conv{index}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, 5):
            out = self.get_submodule(f"conv{index}")(out)
        return x + out


class ResBlock(nn.Module):
    def __init__(self, channels: int, time: int, out: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)
        # spelled as in the published files
        self.temopral_conv = TemporalConvBlock(out)

    def forward(self, x: Tensor, emb: Tensor, batch: int) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[..., None, None]
        h = self.skip_connection(x) + self.out_layers(h)
        video = h.unflatten(0, (batch, -1)).transpose(1, 2)
        return self.temopral_conv(video).transpose(1, 2).flatten(0, 1)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.Sequential):
    """The original's TimestepEmbedSequential: calls each layer with the inputs that it needs."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, batch: int) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, batch)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, TemporalTransformer):
                x = layer(x.unflatten(0, (batch, -1)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """attention: the downsampling rates at which there are transformers. head: width of an attention head. context:
    width of text states. condition: width of T2V-Turbo's guidance embedding; None without one.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        mult: Sequence[int] = (1, 2),
        attention: Sequence[int] = (1,),
        layers: int = 2,
        head: int = 16,
        context: int = 64,
        fps: bool = True,
        condition: int | None = None,
    ) -> None:
        super().__init__()
        self.width, time = width, 4 * width

        def embedding() -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))

        def transformers(channels: int) -> list[nn.Module]:
            heads = channels // head
            return [
                SpatialTransformer(channels, heads, head, context),
                TemporalTransformer(channels, heads, head, linear=True),
            ]

        self.time_embed = embedding()
        if fps:
            self.fps_embedding = embedding()
        if condition is not None:
            self.time_cond_proj = nn.Linear(condition, width, bias=False)
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(4, width, 3, padding=1))])
        self.init_attn = Stage(TemporalTransformer(width, 8, head, linear=False))
        skips, channels, rate = [width], width, 1
        for level, factor in enumerate(mult):
            for _ in range(layers):
                stage: list[nn.Module] = [ResBlock(channels, time, factor * width)]
                channels = factor * width
                self.input_blocks.append(
                    Stage(*stage, *(transformers(channels) if rate in attention else []))
                )
                skips.append(channels)
            if level < len(mult) - 1:
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)
                rate *= 2
        self.middle_block = Stage(
            ResBlock(channels, time, channels), *transformers(channels), ResBlock(channels, time, channels)
        )
        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(mult))):
            for index in range(layers + 1):
                stage = [ResBlock(channels + skips.pop(), time, factor * width)]
                channels = factor * width
                stage += transformers(channels) if rate in attention else []
                if level and index == layers:
                    stage.append(Upsample(channels))
                    rate //= 2
                self.output_blocks.append(Stage(*stage))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, fps: Tensor | None, condition: Tensor | None = None
    ) -> Tensor:
        batch, _, frames, _, _ = x.shape
        features = timestep_features(t, self.width)
        if condition is not None:
            features = features + self.time_cond_proj(condition)
        emb = self.time_embed(features)
        if fps is not None:
            emb = emb + self.fps_embedding(timestep_features(fps, self.width))
        emb, context = (y.repeat_interleave(frames, dim=0) for y in (emb, context))
        h, skips = x.transpose(1, 2).flatten(0, 1), []
        for index, stage in enumerate(self.input_blocks):
            h = stage(h, emb, context, batch)
            if index == 0:
                h = self.init_attn(h, emb, context, batch)
            skips.append(h)
        h = self.middle_block(h, emb, context, batch)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, context, batch)
        return self.out(h).unflatten(0, (batch, frames)).transpose(1, 2)


# ---- the autoencoder ----


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels), _norm(out)
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (b, c, h·w)
        weights = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class PaddedDownsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Coder(nn.Module):
    """The encoder, or the decoder: its levels in order, and the middle blocks at the lowest resolution.

    ends: number of channels that go in and come out.
    """

    def __init__(
        self, *, ch: int, mult: Sequence[int], layers: int, ends: tuple[int, int], decodes: bool
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in mult]
        first = widths[-1] if decodes else widths[0]
        self.decodes = decodes
        self.conv_in = nn.Conv2d(ends[0], first, 3, padding=1)
        levels = nn.ModuleList(nn.Module() for _ in widths)
        channels = first
        for level in reversed(range(len(widths))) if decodes else range(len(widths)):
            blocks = nn.ModuleList()
            for _ in range(layers):
                blocks.append(ResnetBlock(channels, widths[level]))
                channels = widths[level]
            levels[level].block = blocks
            if decodes and level:
                levels[level].upsample = Upsample(channels)
            if not decodes and level < len(widths) - 1:
                levels[level].downsample = PaddedDownsample(channels)
        setattr(self, "up" if decodes else "down", levels)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.block_2 = (ResnetBlock(widths[-1], widths[-1]) for _ in range(2))
        self.mid.attn_1 = AttnBlock(widths[-1])
        self.norm_out = _norm(channels)
        self.conv_out = nn.Conv2d(channels, ends[1], 3, padding=1)

    def _middle(self, x: Tensor) -> Tensor:
        for name in ("block_1", "attn_1", "block_2"):
            x = self.mid.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        if self.decodes:
            x = self._middle(x)
        levels = list(self.get_submodule("up" if self.decodes else "down").children())
        for level in reversed(levels) if self.decodes else levels:
            for block in level.get_submodule("block").children():
                x = block(x)
            for name in ("upsample", "downsample"):
                x = getattr(level, name)(x) if hasattr(level, name) else x
        if not self.decodes:
            x = self._middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self, *, ch: int = 32, mult: Sequence[int] = (1, 1, 2, 2), layers: int = 1) -> None:
        super().__init__()
        self.encoder = Coder(ch=ch, mult=mult, layers=layers, ends=(3, 8), decodes=False)
        self.decoder = Coder(ch=ch, mult=mult, layers=layers + 1, ends=(4, 3), decodes=True)
        self.quant_conv = nn.Conv2d(8, 8, 1)
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the mean of the latents' distribution."""
        return self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents / 0.18215))


# ---- a whole checkpoint ----


def schedule_buffers() -> dict[str, Tensor]:
    """Return the buffers that LVDM's training saves with the weights (lvdm/models/ddpm3d.py)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    products = torch.cumprod(1 - betas, 0)
    names = (
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
    )
    # 1,400 values, as in the published file
    scale = torch.cat([torch.linspace(1.0, 0.7, 400), torch.full((1000,), 0.7)])
    buffers = {"betas": betas, "alphas_cumprod": products, "scale_arr": scale}
    return {**dict.fromkeys(names, torch.zeros(1000)), **{k: v.float() for k, v in buffers.items()}}


def checkpoint(unet: nn.Module, vae: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """Return the state dict in VideoCrafter2's model.ckpt. text: an OpenCLIP model without its image encoder."""
    prefixes = {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.model.": text}
    state = {
        f"{prefix}{name}": x for prefix, part in prefixes.items() for name, x in part.state_dict().items()
    }
    return {**schedule_buffers(), **state}
