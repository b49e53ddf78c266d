"""From a model's folder to modules: built on the meta device, filled tensor by tensor from memory-mapped files."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vinfinity.denoise.flows import Schedule, read_schedule
from vinfinity.errors import WeightsError
from vinfinity.models.checkpoint import Change, changed
from vinfinity.models.decoder import Decoder, Encoder
from vinfinity.models.families import FAMILIES
from vinfinity.models.family import Network
from vinfinity.models.geometry import LatentGeometry
from vinfinity.system.safetensors import TensorEntry, read_json, shape_text
from vinfinity.weights.card import model_family
from vinfinity.weights.part_files import find_weights

Config = TypeVar("Config")

# By parameter: the name of its tensor, and the place of the tensor in the files.
Sources = Mapping[str, tuple[str, TensorEntry]]

MOST_LISTED = 10

# The number of elements of a file that are mapped into memory at a time.
MAPPED_ELEMENTS = 2**25

# The submodules of an autoencoder that only encode, and those that only decode.
ENCODER_PARTS, DECODER_PARTS = ("encoder", "quant_conv"), ("decoder", "post_quant_conv")


def load_network(
    network: Network,
    folder: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    changes: Sequence[Change] = (),
) -> nn.Module:
    """Load a network for inference: its files must have every parameter, with its shape, and nothing else.

    changes: merged into it one tensor at a time. Raises WeightsError, before any weight is read, if the files do not
    fit.
    """
    module = empty_network(network, folder)
    sources = _find(module, folder, network, prefer_fp16=dtype != torch.float32)
    kept = network.fp32_parameters(module)
    _fill(module, sources, device=device, dtype=dtype, keep_fp32=kept, changes=changes)
    return module.eval().requires_grad_(False)


def load_decoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Decoder:
    """Load the decoding half of an autoencoder: a model's own (MODEL/vae), or another one for its latents.

    Raises WeightsError, before any weight is read, if the files do not fit.
    """
    module, sources = find_decoder(folder, prefer_fp16=dtype != torch.float32)
    _fill(module, sources, device=device, dtype=dtype)
    return cast(Decoder, module.eval().requires_grad_(False))


def load_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Encoder:
    """Load the encoding half of a model's own autoencoder. Raises WeightsError."""
    module, network = _empty_autoencoder(folder)
    sources = _find(module, folder, network, prefer_fp16=dtype != torch.float32)
    decoding = tuple(f"{part}." for part in DECODER_PARTS)
    _drop(module, DECODER_PARTS)
    own = {name: source for name, source in sources.items() if not name.startswith(decoding)}
    _fill(module, own, device=device, dtype=dtype)
    return cast(Encoder, module.eval().requires_grad_(False))


def find_decoder(folder: Path, *, prefer_fp16: bool = False) -> tuple[nn.Module, Sources]:
    """Return the decoding half of the autoencoder in `folder`, without weights, and the place of its weights.

    Every tensor in the files must belong to the autoencoder; those that only encode may all be missing. Raises
    WeightsError.
    """
    module, network = _empty_autoencoder(folder)
    sources = _sources(folder, network, prefer_fp16=prefer_fp16)
    encoding = {name for name in sources if name.startswith(tuple(f"{part}." for part in ENCODER_PARTS))}
    if not encoding:
        drop_encoder(module)
    check_fit(module, {name: entry.shape for name, (_, entry) in sources.items()}, folder)
    drop_encoder(module)
    return module, {name: source for name, source in sources.items() if name not in encoding}


def empty_decoder(folder: Path) -> Decoder:
    """Return the decoding half that FOLDER/config.json describes, without weights. Raises WeightsError."""
    module, _ = _empty_autoencoder(folder)
    drop_encoder(module)
    return cast(Decoder, module)


def _empty_autoencoder(folder: Path) -> tuple[nn.Module, Network]:
    decoders, name = known_decoders(), decoder_class(folder)
    if name not in decoders:
        remedy = f"use {' or '.join(decoders)}"
        raise WeightsError("model", folder, remedy, problem=f"has the class {name}")
    return empty_network(decoders[name], folder), decoders[name]


def known_decoders() -> dict[str, Network]:
    """Return the autoencoders of all families by class."""
    return {name: network for family in FAMILIES for name, network in family.decoders.items()}


def decoder_class(folder: Path) -> str:
    """Return the class that FOLDER/config.json names, AutoencoderKL if it names none. Raises WeightsError."""
    return str(read_json(folder / "config.json").get("_class_name", "AutoencoderKL"))


def drop_encoder(autoencoder: nn.Module) -> None:
    """Remove the submodules that only encode."""
    _drop(autoencoder, ENCODER_PARTS)


def _drop(autoencoder: nn.Module, parts: Iterable[str]) -> None:
    for part in parts:
        if hasattr(autoencoder, part):
            delattr(autoencoder, part)


def check_decoder(folder: Path, geometry: LatentGeometry) -> None:
    """Raise WeightsError if the decoder in `folder` does not fit its files, or these latents. Reads no weight."""
    try:
        module, _ = find_decoder(folder)
    except WeightsError as error:
        raise WeightsError("decoder", error.value, error.remedy, problem=error.problem) from None
    config = cast(Decoder, module).config
    decoded = replace(
        geometry,
        channels=config.latent_channels,
        downscale=config.downscale,
        time_downscale=config.time_downscale,
    )
    if decoded != geometry:
        problem = (
            f"decodes latents of {_latents_text(decoded)}, but the model's have {_latents_text(geometry)}"
        )
        remedy = "use a decoder for the model's latents, or remove it"
        raise WeightsError("decoder", folder, remedy, problem=problem)


def _latents_text(geometry: LatentGeometry) -> str:
    time = f", {geometry.time_downscale} frames a latent frame" if geometry.time_downscale > 1 else ""
    return f"{geometry.channels} channels and {geometry.downscale} pixels per position{time}"


def empty_autoencoder(network: Network, config: Any) -> Decoder:
    """Return the decoding half of the autoencoder that `config` describes, without weights."""
    with torch.device("meta"):
        module = network.build(config)
    drop_encoder(module)
    return cast(Decoder, module)


def empty_encoder(network: Network, config: Any) -> Encoder:
    """Return the encoding half of the autoencoder that `config` describes, without weights."""
    with torch.device("meta"):
        module = network.build(config)
    _drop(module, DECODER_PARTS)
    return cast(Encoder, module)


def empty_network(network: Network, folder: Path) -> nn.Module:
    """Return the network that FOLDER/config.json describes, with shapes but no weights. Raises WeightsError."""
    config = parse_config(folder / "config.json", network.read_config)
    with torch.device("meta"):
        return network.build(config)


def check_weights(model: Path, *, prefer_fp16: bool) -> None:
    """Compare the headers of a model's weight files with its configurations; read no weight.

    prefer_fp16: whether the run is in half precision. Raises WeightsError.
    """
    family = model_family(model)
    configs: dict[str, Any] = {}
    modules = {part: empty_network(network, model / part) for part, network in family.networks.items()}
    for part, network in family.networks.items():
        half = prefer_fp16 and not network.always_fp32
        _find(modules[part], model / part, network, prefer_fp16=half)
        configs[part] = modules[part].config
    family.check_parts(configs, model)


def load_scheduler(folder: Path, *, flow: bool = False) -> Schedule:
    """Load the noise schedule in `folder` (MODEL/scheduler). flow: see `read_schedule`. Raises WeightsError."""
    return parse_config(folder / "scheduler_config.json", partial(read_schedule, flow=flow))


def parse_values(
    values: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], Config], path: Path
) -> Config:
    """Parse the content of a JSON file. path: what errors name, the file or its folder. Raises WeightsError."""
    try:
        return parse(values)
    except (ValueError, TypeError) as error:
        raise WeightsError("model", path, "use a model of a supported kind", problem=f"{error}") from None


def parse_config(path: Path, parse: Callable[[Mapping[str, Any]], Config]) -> Config:
    """Parse the JSON file `path`. Raises WeightsError for anything that `parse` does not support."""
    return parse_values(read_json(path), parse, path)


def _fill(
    module: nn.Module,
    sources: Sources,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    keep_fp32: Collection[str] = (),
    changes: Sequence[Change] = (),
) -> None:
    """Read the parameters of a module, one at a time. keep_fp32: those that stay in fp32."""
    for path, names in _chunks(sources):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in names:
                    own = torch.float32 if name in keep_fp32 else dtype
                    tensor = changed(name, file.get_tensor(sources[name][0]), changes)
                    # a single parameter that shares the file's memory would keep the whole chunk mapped
                    kept = tensor.to(device=device, dtype=own, copy=name in keep_fp32)
                    _put(module, name, kept)
                    # a reference to the last tensor would as well
                    del tensor, kept
        except SafetensorError as error:
            raise WeightsError(
                "model", path, "fetch the file again", problem=f"cannot be read ({error})"
            ) from None


def _chunks(sources: Sources) -> Iterator[tuple[Path, list[str]]]:
    """Yield the parameters by file, in chunks after which the file is closed.

    The parts of a mapped file that were read count as memory of this process until then.
    """
    by_file: dict[Path, list[str]] = {}
    for name, (_, entry) in sources.items():
        by_file.setdefault(entry.path, []).append(name)
    for path, names in by_file.items():
        chunk, elements = [], 0
        for name in names:
            chunk.append(name)
            elements += math.prod(sources[name][1].shape)
            if elements >= MAPPED_ELEMENTS:
                yield path, chunk
                chunk, elements = [], 0
        if chunk:
            yield path, chunk


def _find(module: nn.Module, folder: Path, network: Network, *, prefer_fp16: bool) -> Sources:
    """Return where each parameter of the module is. Raises WeightsError unless the files have exactly these."""
    sources = _sources(folder, network, prefer_fp16=prefer_fp16)
    check_fit(module, {name: entry.shape for name, (_, entry) in sources.items()}, folder)
    return sources


def _sources(folder: Path, network: Network, *, prefer_fp16: bool) -> Sources:
    """Return where each parameter that the files in `folder` fill is."""
    entries = find_weights(folder, network.stem, prefer_fp16=prefer_fp16)
    return {
        parameter: (name, entry)
        for name, entry in entries.items()
        if (parameter := network.rename(name)) is not None
    }


def check_fit(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Compare a module's parameters with the tensors for it. Raises WeightsError listing the differences."""
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    faults = [f"missing {name}" for name in needed if name not in shapes]
    faults += [f"unexpected {name}" for name in shapes if name not in needed]
    faults += [
        f"{name} is {shape_text(shapes[name])}, not {shape_text(shape)}"
        for name, shape in needed.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        problem = f"does not fit its config.json: {listed(faults)}"
        raise WeightsError("model", folder, "use weights and config.json of one model", problem=problem)


def listed(faults: Sequence[str]) -> str:
    """Format at most ten faults, and the number of the others, for a message."""
    more = f" and {len(faults) - MOST_LISTED} more" if len(faults) > MOST_LISTED else ""
    return ", ".join(faults[:MOST_LISTED]) + more


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    *parents, last = name.split(".")
    owner = module.get_submodule(".".join(parents))
    setattr(owner, last, nn.Parameter(channels_last(tensor), requires_grad=False))


def channels_last(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight in the memory layout of convolutions over channels-last input.

    Otherwise every call would convert it. With channels last, convolutions are faster by a fifth on the CPU.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return weight.contiguous(memory_format=formats[weight.dim()]) if weight.dim() in formats else weight
