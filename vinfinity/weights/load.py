"""From a model's folder to modules: built on the meta device, filled tensor by tensor from memory-mapped files."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vinfinity.denoise.schedule import SchedulerConfig
from vinfinity.errors import WeightsError
from vinfinity.models.unet3d.clip import TextConfig, TextEncoder
from vinfinity.models.unet3d.layers import channels_last
from vinfinity.models.unet3d.taesd import AutoencoderTiny, LatentDecoder, TinyConfig
from vinfinity.models.unet3d.unet import UNet, UNetConfig
from vinfinity.models.unet3d.vae import AutoencoderKL, VAEConfig
from vinfinity.system.safetensors import TensorEntry, find_weights, read_json

Config = TypeVar("Config")
Sources = Mapping[str, tuple[str, TensorEntry]]  # parameter -> its name in the files, and where it is
LISTED = 10
MAPPED = 2**25  # elements of a file that are mapped at once

# names in files written before diffusers 0.15: the autoencoder's attention
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_name(name: str) -> str:
    """The parameter that a tensor of an autoencoder's file fills."""
    *parents, layer, kind = name.split(".")
    if "attentions" in parents and layer in OLD_ATTENTION:
        return ".".join([*parents, OLD_ATTENTION[layer], kind])
    return name


def text_name(name: str) -> str | None:
    """The parameter that a tensor of a text encoder's file fills; None for the buffer that older files carry along.

    Newer transformers leave out the leading "text_model".
    """
    if name.endswith("embeddings.position_ids"):
        return None
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _same(name: str) -> str:
    return name


@dataclass(frozen=True)
class Kind:
    """One of a model's networks. build: from a parsed config.json. stem: of its weight files. rename: from a file's
    names to the parameters they fill, None for what is passed over. full: parameters that stay in fp32, by the start of
    their names: half precision would round timesteps before they are told apart.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    stem: str
    rename: Callable[[str], str | None] = _same
    full: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "unet": Kind(
        lambda values: UNet(UNetConfig.from_dict(values)),
        "diffusion_pytorch_model",
        full=("time_embedding.", "fps_embedding."),
    ),
    "vae": Kind(
        lambda values: AutoencoderKL(VAEConfig.from_dict(values)), "diffusion_pytorch_model", vae_name
    ),
    "text_encoder": Kind(lambda values: TextEncoder(TextConfig.from_dict(values)), "model", text_name),
}

# By the class that a decoder's config.json names. Tensors of these modules only encode.
DECODERS: Mapping[str, Kind] = {
    "AutoencoderKL": KINDS["vae"],
    "AutoencoderTiny": Kind(
        lambda values: AutoencoderTiny(TinyConfig.from_dict(values)), "diffusion_pytorch_model"
    ),
}
ENCODING = ("encoder", "quant_conv")


class Addition(Protocol):
    """Something that changes parameters while they are loaded."""

    def add_to(self, name: str, tensor: torch.Tensor) -> torch.Tensor: ...


def load_unet(
    folder: Path, *, device: torch.device | str, dtype: torch.dtype, loras: Sequence[Addition] = ()
) -> UNet:
    """The UNet in `folder` (MODEL/unet), with the additions of `loras` merged into it, one tensor at a time.

    Raises WeightsError, before any weight is read, where its files do not fit.
    """
    return cast(UNet, _load("unet", folder, device=device, dtype=dtype, loras=loras))


def load_vae(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder in `folder` (MODEL/vae). Raises WeightsError."""
    return cast(AutoencoderKL, _load("vae", folder, device=device, dtype=dtype))


def load_decoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> LatentDecoder:
    """What turns latents into pictures: the decoding half of the autoencoder in `folder`, a model's own (MODEL/vae) or
    another for the same latents. Raises WeightsError, before any weight is read, where its files do not fit.
    """
    network, sources = find_decoder(folder, half=dtype != torch.float32)
    _fill(network, sources, device=device, dtype=dtype)
    # convolutions are faster with channels last, by a fifth on the CPU
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def find_decoder(folder: Path, *, half: bool = False) -> tuple[LatentDecoder, Sources]:
    """The decoding half of the autoencoder in `folder`, without weights, and where these are.

    Every tensor of the files must have its place; those that only encode may be missing altogether.
    Raises WeightsError.
    """
    network, kind = _empty_decoder(folder)
    sources = _sources(folder, kind, half=half)
    encoding = {target for target in sources if target.startswith(tuple(f"{part}." for part in ENCODING))}
    if not encoding:
        drop_encoder(network)
    check_fit(network, {target: entry.shape for target, (_, entry) in sources.items()}, folder)
    drop_encoder(network)
    return network, {target: source for target, source in sources.items() if target not in encoding}


def empty_decoder(folder: Path) -> LatentDecoder:
    """The decoding half that FOLDER/config.json describes, without weights. Raises WeightsError."""
    network, _ = _empty_decoder(folder)
    drop_encoder(network)
    return network


def _empty_decoder(folder: Path) -> tuple[LatentDecoder, Kind]:
    name = str(read_json(folder / "config.json").get("_class_name", "AutoencoderKL"))
    if name not in DECODERS:
        remedy = f"use {' or '.join(DECODERS)}"
        raise WeightsError("model", folder, remedy, problem=f"is of the class {name}")
    kind = DECODERS[name]
    with torch.device("meta"):
        return cast(LatentDecoder, _config(folder, kind.build)), kind


def drop_encoder(network: nn.Module) -> None:
    for part in ENCODING:
        if hasattr(network, part):
            delattr(network, part)


def check_decoder(folder: Path, *, channels: int, pixels: int) -> None:
    """Raises WeightsError where the decoder in `folder` does not fit its files, or not the latents of a model.

    channels: of the latents. pixels: of the picture to one of the latent, on each side. Reads no weight.
    """
    try:
        network, _ = find_decoder(folder)
    except WeightsError as error:
        raise WeightsError("decoder", error.value, error.remedy, problem=error.problem) from None
    has, needs = (network.config.latent_channels, network.config.factor), (channels, pixels)
    if has != needs:
        told, wanted = (f"{c} channels and {p} pixels a side" for c, p in (has, needs))
        remedy = "take a decoder for the model's latents, or leave it out"
        raise WeightsError("decoder", folder, remedy, problem=f"is for latents of {told}, not {wanted}")


def load_text_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """The text encoder in `folder` (MODEL/text_encoder). Raises WeightsError."""
    return cast(TextEncoder, _load("text_encoder", folder, device=device, dtype=dtype))


def empty_network(part: str, folder: Path) -> nn.Module:
    """The network that FOLDER/config.json describes, with shapes but no weights. Raises WeightsError."""
    with torch.device("meta"):
        return _config(folder, KINDS[part].build)


def check_weights(model: Path, *, half: bool) -> None:
    """Compares the headers of a model's weight files with its configurations; reads no weight.

    half: whether the run is in half precision, which prefers the fp16 variant. Raises WeightsError.
    """
    networks = {part: empty_network(part, model / part) for part in KINDS}
    for part, network in networks.items():
        _find(network, model / part, KINDS[part], half=half and part != "vae")
    check_widths(networks, model)


def check_widths(networks: Mapping[str, nn.Module], model: Path) -> None:
    """Raises WeightsError where a model's parts are of models that do not go together."""
    unet, vae, text = (cast(Any, networks[part].config) for part in KINDS)
    for part, has, needs in (
        ("text_encoder", text.hidden_size, unet.cross_attention_dim),
        ("vae", vae.latent_channels, unet.in_channels),
    ):
        if has != needs:
            problem = f"makes {has} channels for a UNet that takes {needs}"
            raise WeightsError("model", model / part, "take both from models of one kind", problem=problem)


def load_scheduler(folder: Path) -> SchedulerConfig:
    """The noise schedule in `folder` (MODEL/scheduler). Raises WeightsError."""
    return _config(folder, SchedulerConfig.from_dict, name="scheduler_config.json")


def _config(
    folder: Path, build: Callable[[Mapping[str, Any]], Config], *, name: str = "config.json"
) -> Config:
    try:
        return build(read_json(folder / name))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            "model", folder / name, "use a model of a supported kind", problem=f"{error}"
        ) from None


def _load(
    part: str,
    folder: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    loras: Sequence[Addition] = (),
) -> nn.Module:
    """Fills a network strictly, tensor by tensor: every key must be there, with its shape, and no other."""
    module = empty_network(part, folder)
    sources = _find(module, folder, KINDS[part], half=dtype != torch.float32)
    _fill(module, sources, device=device, dtype=dtype, full=KINDS[part].full, loras=loras)
    return module.eval().requires_grad_(False)


def _fill(
    module: nn.Module,
    sources: Sources,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    full: tuple[str, ...] = (),
    loras: Sequence[Addition] = (),
) -> None:
    """Reads the parameters of a module, one at a time. full: the start of the names of those that stay in fp32."""
    for path, targets in _stretches(sources):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for target in targets:
                    own = torch.float32 if target.startswith(full) else dtype
                    tensor = file.get_tensor(sources[target][0])
                    for lora in loras:
                        tensor = lora.add_to(target, tensor)
                    _put(module, target, tensor.to(device=device, dtype=own))
                    del tensor  # the last of a stretch would keep all of it mapped
        except SafetensorError as error:
            raise WeightsError(
                "model", path, "fetch the file again", problem=f"cannot be read ({error})"
            ) from None


def _stretches(sources: Sources) -> Iterator[tuple[Path, list[str]]]:
    """The parameters by file, in stretches after which the file is closed.

    What was read of a mapped file counts as this process's memory until then.
    """
    by_file: dict[Path, list[str]] = {}
    for target, (_, entry) in sources.items():
        by_file.setdefault(entry.path, []).append(target)
    for path, targets in by_file.items():
        stretch, elements = [], 0
        for target in targets:
            stretch.append(target)
            elements += math.prod(sources[target][1].shape)
            if elements >= MAPPED:
                yield path, stretch
                stretch, elements = [], 0
        if stretch:
            yield path, stretch


def _find(module: nn.Module, folder: Path, kind: Kind, *, half: bool) -> Sources:
    """For each parameter of the module, where it is; all of them, with their shapes, and no others."""
    sources = _sources(folder, kind, half=half)
    check_fit(module, {target: entry.shape for target, (_, entry) in sources.items()}, folder)
    return sources


def _sources(folder: Path, kind: Kind, *, half: bool) -> Sources:
    """The parameters that the files in `folder` fill."""
    entries = find_weights(folder, kind.stem, half=half)
    return {
        target: (name, entry) for name, entry in entries.items() if (target := kind.rename(name)) is not None
    }


def check_fit(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Compares a module's parameters with the tensors meant for it. Raises WeightsError listing what does not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    faults = [f"missing {name}" for name in wanted if name not in shapes]
    faults += [f"unexpected {name}" for name in shapes if name not in wanted]
    faults += [
        f"{name} is {_shape(shapes[name])}, not {_shape(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        problem = f"does not fit its config.json: {listed(faults)}"
        raise WeightsError("model", folder, "use weights and config.json of one model", problem=problem)


def listed(faults: Sequence[str]) -> str:
    """At most ten faults and a count of the others, as they stand in a message."""
    more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return ", ".join(faults[:LISTED]) + more


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    *parents, last = name.split(".")
    owner = module.get_submodule(".".join(parents))
    setattr(owner, last, nn.Parameter(channels_last(tensor), requires_grad=False))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
