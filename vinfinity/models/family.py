"""A family of models: networks of one kind, with everything that differs between families in one place.

Importing this module or reading a model's card loads no torch; building a network does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vinfinity.models.geometry import LatentGeometry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vinfinity.models.checkpoint import Checkpoint, CheckpointPart, Distillation, Shapes
    from vinfinity.models.frame_text import FrameText
    from vinfinity.models.network_call import CallOptions, NetworkCall
    from vinfinity.parallel.context import TemporalContext

Configs = Mapping[str, Any]
Half = Literal["fp16", "bf16"]
# folders that models of every family have
TEXT_ENCODER, AUTOENCODER, TOKENIZER, SCHEDULER = "text_encoder", "vae", "tokenizer", "scheduler"


def same_name(name: str) -> str:
    """For files whose tensors are named like the parameters."""
    return name


def no_aliases(config: Any, modules: Collection[str]) -> Mapping[str, str]:
    """For networks that have one layout only."""
    return {}


def nothing_implied(tensors: Collection[str]) -> Mapping[str, object]:
    """For networks whose config.json says everything."""
    return {}


@dataclass(frozen=True)
class Network:
    """One network of a family.

    read_config: a parsed config.json to a typed config; raises ValueError. build: a config to a module.
    stem: the name of its weight files up to the first dot. rename: the name of a tensor in a file to the parameter it
    fills, None for a tensor that is skipped. keep_fp32: names, or parts between their dots, of modules and parameters
    that stay in fp32 in every run, as group norms do anyway.
    always_fp32: whether the whole network does. shown: config entries that describe it to users.
    lora_prefixes: what LoRA files put before the names of its modules; empty for a network that takes no LoRA.
    aliases: the config and the names of all modules to further names of modules, those of other layouts.
    implied: the names of its tensors to entries of config.json that follow from them, whatever the file says.
    """

    read_config: Callable[[Mapping[str, Any]], Any]
    build: Callable[[Any], nn.Module]
    stem: str
    rename: Callable[[str], str | None] = same_name
    keep_fp32: tuple[str, ...] = ()
    always_fp32: bool = False
    shown: tuple[str, ...] = ()
    lora_prefixes: tuple[str, ...] = ()
    aliases: Callable[[Any, Collection[str]], Mapping[str, str]] = no_aliases
    implied: Callable[[Collection[str]], Mapping[str, object]] = nothing_implied

    def fp32_parameters(self, module: nn.Module) -> frozenset[str]:
        """The parameters of a module of this network that stay in fp32 in every run.

        Those that `keep_fp32` names, and the scales and shifts of group norms, which compute in fp32.
        """
        from torch import nn

        norms = tuple(f"{name}." for name, layer in module.named_modules() if isinstance(layer, nn.GroupNorm))
        kept = {*self.keep_fp32}
        return frozenset(
            name
            for name, _ in module.named_parameters()
            if name.startswith(norms) or not kept.isdisjoint(name.split("."))
        )


@dataclass(frozen=True)
class DenoiserTraits:
    """What the rest of the program needs to know about a denoising network, whichever family it belongs to.

    channels: of its latents. text_width: channels of the text states that it takes. takes_fps: whether it takes the
    frame rate as an input. guidance_width: width of the embedding in which a distilled model takes the guidance weight;
    None for models that are guided by a second prediction. levels: resolutions that it works at; features of all but
    the finest can be reused over steps. multiple: latent positions of which height and width should be multiples.
    hidden, widest: channels, per latent position, of its narrowest and its widest hidden states. parameters: an upper
    bound on their number. joint: whether all positions of the attended frames meet in one attention, computed a latent
    frame at a time, rather than each position over time.
    """

    channels: int
    text_width: int
    takes_fps: bool
    guidance_width: int | None
    levels: int
    multiple: int
    hidden: int
    widest: int
    parameters: int
    joint: bool = False


@dataclass(frozen=True)
class Traits:
    """The same of a whole model.

    text_length: tokens that the text encoder takes. text_parameters: an upper bound on the number of its parameters.
    """

    geometry: LatentGeometry
    text_length: int
    denoiser: DenoiserTraits
    text_parameters: int = 0


@dataclass(frozen=True)
class Tokens:
    """ids: exactly `length` token ids of the tokenizer. used: how many of them are the text's own, markers of its
    start and end included; the others are padding. cut: the part of the text that did not fit, or "".
    """

    ids: list[int]
    used: int
    cut: str


class TextTokenizer(Protocol):
    """Text to token ids."""

    @property
    def length(self) -> int:
        """Token ids per text."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Tokens that it knows."""
        ...

    def token(self, token_id: int) -> str:
        """The text of a token."""
        ...

    def __call__(self, text: str) -> Tokens:
        """The ids of `text`, padded or cut to `length`, and what was cut off."""
        ...


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face Hub. only: the single file that is needed; None for a whole model."""

    repo: str
    revision: str = "main"
    only: str | None = None


@dataclass(frozen=True)
class PublishedModel:
    """A model that `vinfinity models fetch` knows by name.

    source: what is fetched. complete_from: the published model that supplies the missing parts. gigabytes: on disk.
    card: its authors' settings, for its card.json. files: contents of its JSON files by part, as far as they differ
    from `Family.published_files`; the entry "card" is for a card.json that the conversion writes.
    """

    source: HubSource
    about: str
    gigabytes: float
    licence: str
    complete_from: str | None = None
    card: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


class Family(Protocol):
    """A family of models. Adding one takes a folder beside this file and a line in families.py.

    name: of the folder. denoiser: the part that predicts noise. networks: by folder inside a model's folder.
    decoders: the autoencoders whose latents this family knows, by the class that their config.json names.
    samplers: the names of the samplers that work with its noise schedules.
    denoiser_class, pipeline_class: prefix of the denoiser's class, and class of the pipeline, in diffusers' JSON files.
    published: models by name. published_files: what the JSON files of all of them have in common, by part.
    trained_frames: length of the training clips of models whose card does not say it, in frames. flow: whether its
    models were trained by flow matching. half: the 16 bits that suit its weights on GPUs. original_tokenizer: the
    folder of the tokenizer among the authors' own files, "" if there is none.
    """

    @property
    def name(self) -> str: ...
    @property
    def denoiser(self) -> str: ...
    @property
    def networks(self) -> Mapping[str, Network]: ...
    @property
    def decoders(self) -> Mapping[str, Network]: ...
    @property
    def samplers(self) -> tuple[str, ...]: ...
    @property
    def denoiser_class(self) -> str: ...
    @property
    def pipeline_class(self) -> str: ...
    @property
    def trained_frames(self) -> int: ...
    @property
    def flow(self) -> bool: ...
    @property
    def half(self) -> Half: ...
    @property
    def original_tokenizer(self) -> str: ...
    @property
    def published(self) -> Mapping[str, PublishedModel]: ...
    @property
    def published_files(self) -> Mapping[str, Mapping[str, object]]: ...

    def __hash__(self) -> int: ...

    def traits(self, configs: Configs) -> Traits:
        """configs: by network, as `Network.read_config` returns them."""
        ...

    def denoiser_traits(self, config: Any) -> DenoiserTraits:
        """config: of the denoiser, as `Network.read_config` returns it."""
        ...

    def defaults(self, configs: Configs, schedule: Mapping[str, Any]) -> dict[str, object]:
        """Settings that follow from a model's files. schedule: its parsed scheduler_config.json."""
        ...

    def check_parts(self, configs: Configs, folder: Path) -> None:
        """Raises WeightsError if the networks in `folder` belong to different models."""
        ...

    def load_tokenizer(self, folder: Path, *, length: int) -> TextTokenizer:
        """The tokenizer in `folder`. length: the most tokens of a text. Raises WeightsError."""
        ...

    def encode_text(self, encoder: nn.Module, ids: Tensor, used: Sequence[int]) -> Tensor:
        """The text states (b, t, c) of token ids (b, t). used: for each text, as in `Tokens`."""
        ...

    def network_call(
        self,
        denoiser: nn.Module,
        text: FrameText,
        context_at: Callable[[float], TemporalContext],
        options: CallOptions,
    ) -> NetworkCall:
        """The way to call a loaded denoiser. text: of the guidance branches of this rank.

        context_at: the temporal context in force at a training timestep.
        """
        ...

    def compile(self, denoiser: nn.Module) -> None:
        """Compile the layers of a loaded denoiser that do not wait for other ranks, each at its first call."""
        ...

    def read_checkpoint(self, tensors: Mapping[str, Tensor]) -> Checkpoint | None:
        """A checkpoint in its authors' layout; None if it is not of this family.

        Raises ValueError if its architecture is not supported.
        """
        ...

    def read_part(self, shapes: Shapes) -> tuple[CheckpointPart, list[str]] | None:
        """One network in its authors' layout, and its faults: tensors that are missing, unexpected or of another shape.

        shapes: by tensor of its files. None if it is not of this family, or the family has no such layout. Raises
        ValueError if its architecture is not supported.
        """
        ...

    def read_distillation(self, factors: Sequence[Tensor], config: Mapping[str, Any]) -> Distillation:
        """A list of unnamed low-rank factors, for the denoiser that `config`, a parsed config.json, describes."""
        ...


def parts_of(family: Family) -> tuple[str, ...]:
    """The folders that a complete model of the family has."""
    return (*family.networks, TOKENIZER, SCHEDULER)
