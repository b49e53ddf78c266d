"""What a model family provides: its networks, and everything else that differs between families.

Importing this module or reading a model's card does not load torch; building a network does.
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
# folders that every model has, whatever its family
TEXT_ENCODER, AUTOENCODER, TOKENIZER, SCHEDULER = "text_encoder", "vae", "tokenizer", "scheduler"


def same_name(name: str) -> str:
    """Return the name unchanged, for files whose tensors are named like the parameters."""
    return name


def no_aliases(config: Any, modules: Collection[str]) -> Mapping[str, str]:
    """Return no aliases, for networks with a single layout."""
    return {}


def nothing_implied(tensors: Collection[str]) -> Mapping[str, object]:
    """Return no entries, for networks whose config.json is complete."""
    return {}


@dataclass(frozen=True)
class Network:
    """One network of a family.

    read_config: turns a parsed config.json into a typed config; raises ValueError. build: makes the module from that
    config. stem: the name of the weight files, up to the first dot. rename: maps the name of a tensor in a file to the
    parameter it fills, or to None to skip the tensor. keep_fp32: modules and parameters that stay in fp32 in every run,
    by name or by a component of their dotted name; group norms always do. always_fp32: whether the whole network stays
    in fp32. shown: config entries that describe the network to users. lora_prefixes: prefixes that LoRA files put
    before module names; empty for a network that takes no LoRA. aliases: maps names from other layouts to our modules,
    given the config and all module names. implied: entries of config.json that follow from the tensor names, and that
    override the file.
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
        """Return the names of the module's parameters that stay in fp32 in every run.

        These are the parameters that `keep_fp32` selects, and the scales and shifts of group norms.
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

    channels: channels of the latents. text_width: channels of the text states. takes_fps: whether the frame rate is an
    input. guidance_width: width of the embedding in which a distilled model takes the guidance scale; None for models
    that are guided by a second prediction. levels: number of resolutions; features of all but the finest can be reused
    over steps. multiple: height and width should be multiples of this many latent positions. hidden, widest: channels
    per latent position of the narrowest and the widest hidden states. parameters: an upper bound on the number of
    parameters. joint: whether all positions of the attended frames meet in one attention, computed one latent frame at
    a time, rather than each position attending over time.
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
    """What the rest of the program needs to know about a whole model.

    geometry: the grid of the latents. text_length: number of tokens that the text encoder takes. text_parameters: an
    upper bound on the number of the text encoder's parameters.
    """

    geometry: LatentGeometry
    text_length: int
    denoiser: DenoiserTraits
    text_parameters: int = 0


@dataclass(frozen=True)
class Tokens:
    """A tokenized text.

    ids: exactly `TextTokenizer.length` token ids. used: number of ids that belong to the text, including the start and
    end markers; the others are padding. cut: the part of the text that did not fit, or "".
    """

    ids: list[int]
    used: int
    cut: str


class TextTokenizer(Protocol):
    """Turns text into token ids."""

    @property
    def length(self) -> int:
        """Token ids per text."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        ...

    def token(self, token_id: int) -> str:
        """Return the text of a token."""
        ...

    def __call__(self, text: str) -> Tokens:
        """Return the ids of `text`, padded or cut to `length`, and the text that was cut off."""
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

    source: the repository to fetch. about: one line of description. gigabytes: size on disk. complete_from: the
    published model that supplies the missing parts. card: the authors' settings, for card.json. files: contents of the
    JSON files by part, where they differ from `Family.published_files`; the entry "card" is for a card.json that the
    conversion writes.
    """

    source: HubSource
    about: str
    gigabytes: float
    licence: str
    complete_from: str | None = None
    card: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


class Family(Protocol):
    """A family of models. To add one, add a folder next to this file and a line to families.py.

    name: the name of that folder. denoiser: the part that predicts noise. networks: the networks, by folder inside a
    model folder. decoders: the autoencoders that can decode this family's latents, by the class that their config.json
    names. samplers: the names of the samplers that work with the family's noise schedules. denoiser_class,
    pipeline_class: the prefix of the denoiser's class and the class of the pipeline in diffusers' JSON files.
    published: the published models by name. published_files: what their JSON files have in common, by part.
    trained_frames: length of the training clips, in frames, for models whose card does not give it. flow: whether the
    models were trained with flow matching. half: the 16-bit type that suits the weights on GPUs. original_tokenizer:
    the tokenizer's folder among the authors' own files, "" if there is none.
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
        """Describe a model. configs: its networks' configs, as `Network.read_config` returns them."""
        ...

    def denoiser_traits(self, config: Any) -> DenoiserTraits:
        """Describe a denoiser. config: its config, as `Network.read_config` returns it."""
        ...

    def defaults(self, configs: Configs, schedule: Mapping[str, Any]) -> dict[str, object]:
        """Derive settings from a model's files. schedule: its parsed scheduler_config.json."""
        ...

    def check_parts(self, configs: Configs, folder: Path) -> None:
        """Raise WeightsError if the networks in `folder` belong to different models."""
        ...

    def load_tokenizer(self, folder: Path, *, length: int) -> TextTokenizer:
        """Load the tokenizer in `folder`. length: the most tokens in a text. Raises WeightsError."""
        ...

    def encode_text(self, encoder: nn.Module, ids: Tensor, used: Sequence[int]) -> Tensor:
        """Return the text states (b, t, c) of token ids (b, t). used: the `Tokens.used` of each text."""
        ...

    def network_call(
        self,
        denoiser: nn.Module,
        text: FrameText,
        context_at: Callable[[float], TemporalContext],
        options: CallOptions,
    ) -> NetworkCall:
        """Make the call of a loaded denoiser.

        text: the text of this rank's guidance branches. context_at: gives the temporal context at a training timestep.
        """
        ...

    def compile(self, denoiser: nn.Module) -> None:
        """Compile the layers of a loaded denoiser that do not wait for other ranks, each at its first call."""
        ...

    def read_checkpoint(self, tensors: Mapping[str, Tensor]) -> Checkpoint | None:
        """Read a checkpoint in its authors' layout; return None if it belongs to another family.

        Raises ValueError if its architecture is not supported.
        """
        ...

    def read_part(self, shapes: Shapes) -> tuple[CheckpointPart, list[str]] | None:
        """Read one network in its authors' layout, and list its tensors that are missing, unexpected or misshaped.

        shapes: the shape of each tensor in its files. Returns None if it belongs to another family, or if the family
        has no such layout. Raises ValueError if its architecture is not supported.
        """
        ...

    def read_distillation(self, factors: Sequence[Tensor], config: Mapping[str, Any]) -> Distillation:
        """Read unnamed low-rank factors for the denoiser that `config`, a parsed config.json, describes."""
        ...


def parts_of(family: Family) -> tuple[str, ...]:
    """List the folders of a complete model of the family."""
    return (*family.networks, TOKENIZER, SCHEDULER)
