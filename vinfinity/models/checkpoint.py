"""Checkpoints in the layout of a model's authors, and where to find each of our parameters in them.

A family reads such a file into these types; weights/convert.py writes the model folder from them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class TensorSource:
    """The tensor that a parameter comes from.

    third: which third of its rows to take (0, 1 or 2); None takes all of them.
    """

    name: str
    third: int | None = None


@dataclass(frozen=True)
class CheckpointPart:
    """One network of a model inside a checkpoint.

    name: the network's folder, such as "unet". config: the content of its config.json. sources, shapes: the source and
    the shape of each parameter.
    """

    name: str
    config: Mapping[str, Any]
    sources: Mapping[str, TensorSource]
    shapes: Shapes

    def tensors(self, checkpoint: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters in turn. Fused rows are split; convolutions with kernel 1 become linear layers."""
        for name, source in self.sources.items():
            tensor = checkpoint[source.name]
            if source.third is not None:
                tensor = tensor.chunk(3)[source.third]
            yield name, tensor.reshape(self.shapes[name])


@dataclass(frozen=True)
class Checkpoint:
    """A model in one file.

    parts: the networks. faults: one entry for each tensor that is missing, unexpected or has the wrong shape; empty if
    the checkpoint is sound. schedule: the content of scheduler_config.json. card: settings for card.json. pad_token_id:
    the token that pads short texts, whatever the tokenizer's own files say.
    """

    parts: tuple[CheckpointPart, ...]
    faults: tuple[str, ...]
    schedule: Mapping[str, Any]
    card: Mapping[str, Any]
    pad_token_id: int


class Change(Protocol):
    """A change made to parameters as they are loaded."""

    def addition(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return what to add to a parameter, in fp32, or None. tensor: the parameter before any change."""
        ...


def changed(name: str, tensor: Tensor, changes: Sequence[Change]) -> Tensor:
    """Apply all changes to a parameter, in fp32, in any order. Return the parameter itself if none affects it."""
    additions = [addition for change in changes if (addition := change.addition(name, tensor)) is not None]
    return sum(additions, start=tensor.float()) if additions else tensor


@dataclass(frozen=True)
class Distillation:
    """Low-rank factors that turn one model into another.

    faults: why the factors do not fit the model; empty if they do. config: the denoiser's new config.json. change: adds
    the factors to the denoiser's parameters. new: parameters that the original lacks. schedule, card: settings that
    replace the original's.
    """

    faults: tuple[str, ...]
    config: Mapping[str, Any]
    change: Change
    new: Mapping[str, Tensor] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
