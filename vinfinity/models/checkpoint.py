"""Checkpoints in the layout of a model's authors: where each of our parameters is found in them.

A family reads such a file into these types; weights/convert.py writes the model's folder from them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class TensorSource:
    """Where a parameter comes from. third: which third of the source's rows (0, 1 or 2); None takes all of them."""

    name: str
    third: int | None = None


@dataclass(frozen=True)
class CheckpointPart:
    """One network of a model inside a checkpoint.

    name: its folder, such as "unet". config: the content of its config.json. sources, shapes: by parameter.
    """

    name: str
    config: Mapping[str, Any]
    sources: Mapping[str, TensorSource]
    shapes: Shapes

    def tensors(self, checkpoint: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The parameters, one after the other. Fused rows are split; convolutions of kernel 1 become linear layers."""
        for name, source in self.sources.items():
            tensor = checkpoint[source.name]
            if source.third is not None:
                tensor = tensor.chunk(3)[source.third]
            yield name, tensor.reshape(self.shapes[name])


@dataclass(frozen=True)
class Checkpoint:
    """A model in one file.

    parts: its networks. faults: tensors that are missing, unexpected or of another shape; empty if all is well.
    schedule: its scheduler_config.json. card: settings for its card.json. pad_token_id: what short texts are padded
    with, whatever the tokenizer's own files say.
    """

    parts: tuple[CheckpointPart, ...]
    faults: tuple[str, ...]
    schedule: Mapping[str, Any]
    card: Mapping[str, Any]
    pad_token_id: int


class Change(Protocol):
    """Something that changes parameters while they are loaded."""

    def addition(self, name: str, tensor: Tensor) -> Tensor | None:
        """What is added to a parameter, in fp32; None if nothing is. tensor: the parameter before any change."""
        ...


def changed(name: str, tensor: Tensor, changes: Sequence[Change]) -> Tensor:
    """A parameter with all changes, in fp32; the parameter itself if there are none. Their order does not matter."""
    additions = [addition for change in changes if (addition := change.addition(name, tensor)) is not None]
    return sum(additions, start=tensor.float()) if additions else tensor


@dataclass(frozen=True)
class Distillation:
    """Low-rank factors that turn a model into another one.

    faults: why the factors do not fit the model; empty if they do. config: the new config.json of the denoiser.
    change: adds the factors to the denoiser's parameters. new: parameters that the original does not have.
    schedule, card: settings that replace those of the original.
    """

    faults: tuple[str, ...]
    config: Mapping[str, Any]
    change: Change
    new: Mapping[str, Tensor] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
