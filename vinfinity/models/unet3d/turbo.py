"""T2V-Turbo's unet_lora.pt: unnamed low-rank factors in the order of LVDM's modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vinfinity.models.checkpoint import Distillation, Shapes
from vinfinity.models.low_rank import factors_fit, low_rank_product
from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.models.unet3d.lvdm import UNET, unet_table
from vinfinity.models.unet3d.published import TURBO_CARD, TURBO_GUIDANCE_WIDTH, TURBO_SCHEDULE
from vinfinity.models.unet3d.unet import UNet
from vinfinity.system.safetensors import shape_text

# The order in which LVDM's code creates modules with the same parent.
MODULE_ORDER = (
    "time_embed",
    "fps_embedding",
    "time_cond_proj",
    "input_blocks",
    "init_attn",
    "middle_block",
    "output_blocks",
    "out",
    "in_layers",
    "emb_layers",
    "out_layers",
    "skip_connection",
    "temopral_conv",
    "conv1",
    "conv2",
    "conv3",
    "conv4",
    "op",
    "conv",
    "norm",
    "proj_in",
    "transformer_blocks",
    "proj_out",
    "attn1",
    "ff",
    "attn2",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "net",
    "proj",
)
# One-dimensional convolutions, which got no factors in training.
ONE_DIMENSIONAL = ("init_attn.0.proj_in", "init_attn.0.proj_out")


@dataclass(frozen=True)
class TurboFactors:
    """T2V-Turbo's factors: (up, down) by parameter."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]

    def addition(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return what to add to a parameter, in fp32, or None."""
        if name not in self.pairs:
            return None
        up, down = self.pairs[name]
        return low_rank_product(up.float(), down.float(), tensor.shape)


def read_turbo(factors: Sequence[Tensor], config: Mapping[str, Any]) -> Distillation:
    """Read the factors as an addition to the UNet that `config`, a parsed config.json, describes.

    The distilled UNet takes the guidance scale as an input. In the authors' code (predict.py), the projection of that
    input has random values, different each time, to which the factors are added; here it starts at zero, their mean.
    """
    values = {**config, "time_cond_proj_dim": TURBO_GUIDANCE_WIDTH}
    with torch.device("meta"):
        unet = UNet(UNetConfig.from_dict(values))
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    table = unet_table(unet.config, list(shapes))
    order = turbo_order({name: source.name.removeprefix(UNET) for name, source in table.items()}, shapes)
    faults = turbo_faults(factors, order, shapes)
    projection = "time_embedding.cond_proj.weight"
    return Distillation(
        faults=tuple(faults),
        config=values,
        change=TurboFactors(
            {} if faults else {name: (factors[2 * i], factors[2 * i + 1]) for i, name in enumerate(order)}
        ),
        new={projection: torch.zeros(shapes[projection])},
        schedule=TURBO_SCHEDULE,
        card=TURBO_CARD,
    )


def turbo_order(sources: Mapping[str, str], shapes: Shapes) -> list[str]:
    """List the parameters that T2V-Turbo's factors add to, in order (utils/lora.py of Ji4chenLi/t2v-turbo).

    sources: maps each parameter to LVDM's name inside the UNet. The factors cover every linear layer and every two- or
    three-dimensional convolution.
    """

    def position(name: str) -> list[int]:
        module = sources[name].removesuffix(".weight")
        return [int(step) if step.isdigit() else MODULE_ORDER.index(step) for step in module.split(".")]

    covered = [
        name
        for name, source in sources.items()
        if source.endswith(".weight")
        and len(shapes[name]) > 1
        and not source.removesuffix(".weight").endswith(ONE_DIMENSIONAL)
    ]
    return sorted(covered, key=position)


def turbo_faults(factors: Sequence[Tensor], order: Sequence[str], shapes: Shapes) -> list[str]:
    """Say why a list of factors (up, down, up, down, ...) does not fit these parameters; return [] if it does."""
    if len(factors) != 2 * len(order):
        return [f"{len(factors)} tensors, not {2 * len(order)}"]
    faults = []
    for index, name in enumerate(order):
        up, down = (tuple(factors[2 * index + i].shape) for i in (0, 1))
        if not factors_fit(up, down, shapes[name]):
            faults.append(
                f"pair {index} is {shape_text(up)} and {shape_text(down)}, "
                f"but {name} is {shape_text(shapes[name])}"
            )
    return faults
