"""From a model's folder to modules: built on the meta device, filled tensor by tensor from memory-mapped files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vinfinity.errors import WeightsError
from vinfinity.models.text import TextConfig, TextEncoder
from vinfinity.models.unet import UNet, UNetConfig
from vinfinity.models.vae import AutoencoderKL, VAEConfig
from vinfinity.sampling.schedule import SchedulerConfig
from vinfinity.weights.files import TensorEntry, find_weights, read_json

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)
LISTED = 10

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


def load_unet(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> UNet:
    """The UNet in `folder` (MODEL/unet). Raises WeightsError, before any weight is read, where its files do not fit."""
    unet = _on_meta(UNet, _config(folder, UNetConfig.from_dict))
    return _fill(unet, folder, "diffusion_pytorch_model", device=device, dtype=dtype)


def load_vae(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder in `folder` (MODEL/vae). Raises WeightsError."""
    vae = _on_meta(AutoencoderKL, _config(folder, VAEConfig.from_dict))
    return _fill(vae, folder, "diffusion_pytorch_model", device=device, dtype=dtype, rename=vae_name)


def load_text_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """The text encoder in `folder` (MODEL/text_encoder). Raises WeightsError."""
    encoder = _on_meta(TextEncoder, _config(folder, TextConfig.from_dict))
    return _fill(encoder, folder, "model", device=device, dtype=dtype, rename=text_name)


def check_weights(model: Path, *, half: bool) -> None:
    """Compares the headers of a model's weight files with its configurations; reads no weight.

    half: whether the run is in half precision, which prefers the fp16 variant. Raises WeightsError.
    """
    unet = _on_meta(UNet, _config(model / "unet", UNetConfig.from_dict))
    _find(unet, model / "unet", "diffusion_pytorch_model", half=half)
    vae = _on_meta(AutoencoderKL, _config(model / "vae", VAEConfig.from_dict))
    _find(vae, model / "vae", "diffusion_pytorch_model", half=False, rename=vae_name)
    encoder = _on_meta(TextEncoder, _config(model / "text_encoder", TextConfig.from_dict))
    _find(encoder, model / "text_encoder", "model", half=half, rename=text_name)


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


def _fill(
    module: Module,
    folder: Path,
    stem: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    rename: Callable[[str], str | None] = lambda name: name,
) -> Module:
    """Fills a module on the meta device, strictly: every key must be there, with its shape, and no other."""
    sources = _find(module, folder, stem, half=dtype != torch.float32, rename=rename)
    by_file: dict[Path, list[str]] = {}
    for target, (_, path) in sources.items():
        by_file.setdefault(path, []).append(target)
    for path, targets in by_file.items():
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for target in targets:
                    tensor = file.get_tensor(sources[target][0]).to(device=device, dtype=dtype)
                    _put(module, target, tensor)
        except SafetensorError as error:
            raise WeightsError(
                "model", path, "fetch the file again", problem=f"cannot be read ({error})"
            ) from None
    return module.eval().requires_grad_(False)


def _on_meta(kind: Callable[[Config], Module], config: Config) -> Module:
    """A network with shapes but no weights yet."""
    with torch.device("meta"):
        return kind(config)


def _find(
    module: nn.Module,
    folder: Path,
    stem: str,
    *,
    half: bool,
    rename: Callable[[str], str | None] = lambda name: name,
) -> dict[str, tuple[str, Path]]:
    """For each parameter of the module, its name in the files and the file that holds it."""
    entries = find_weights(folder, stem, half=half)
    sources = {target: name for name in entries if (target := rename(name)) is not None}
    check_fit(module, {target: entries[name] for target, name in sources.items()}, folder)
    return {target: (name, entries[name].path) for target, name in sources.items()}


def check_fit(module: nn.Module, entries: Mapping[str, TensorEntry], folder: Path) -> None:
    """Compares a module's parameters with the tensors meant for it. Raises WeightsError listing what does not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    faults = [f"missing {name}" for name in wanted if name not in entries]
    faults += [f"unexpected {name}" for name in entries if name not in wanted]
    faults += [
        f"{name} is {_shape(entries[name].shape)}, not {_shape(shape)}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    if faults:
        more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        problem = f"does not fit its config.json: {', '.join(faults[:LISTED])}{more}"
        raise WeightsError("model", folder, "use weights and config.json of one model", problem=problem)


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    *parents, last = name.split(".")
    owner = module.get_submodule(".".join(parents))
    setattr(owner, last, nn.Parameter(tensor, requires_grad=False))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
