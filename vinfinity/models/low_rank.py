"""Formulas for what adapters add to a parameter, over the tensors of their files.

LoRA (Hu et al. 2021), with a core between the factors for convolutions (Tucker decomposition, Yeh et al. 2024); LoHa
(Hyeon-Woo et al. 2022); LoKr (Yeh et al. 2024); DoRA (Liu et al. 2024), which rescales any of them; plain differences;
and parameters that replace the model's.

Dims: o outputs, i inputs, r rank, k kernel size; the kernel axes come last. The formulas also work on tensors without
data, so computing shapes tells whether factors fit a parameter.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
Factors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Formula:
    """How tensors, named by their roles, change a parameter.

    compute: computes the change from the factors and the parameter's shape; raises ValueError or RuntimeError if they
    do not fit. sets: the possible complete sets of roles, in order of preference. optional: further roles that a file
    may have. ranks: roles whose first axis is the rank; the first one in the file counts. parameter: the parameter's
    name inside the module. scaled: whether alpha / rank applies. replaces: whether the result replaces the parameter.
    """

    compute: Callable[[Factors, Shape], Tensor]
    sets: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    parameter: str = "weight"
    scaled: bool = True
    replaces: bool = False

    def complete(self, roles: Collection[str]) -> tuple[str, ...] | None:
        """Select the roles that the formula uses; return None if they are not a complete set."""
        chosen = next((group for group in self.sets if set(group) <= set(roles)), None)
        return None if chosen is None else (*chosen, *(role for role in self.optional if role in roles))

    @property
    def roles(self) -> set[str]:
        """All roles that the formula knows."""
        return {role for group in self.sets for role in group} | {*self.optional}


def parameter_change(formula: str, factors: Factors, base: Tensor, scale: float) -> Tensor:
    """Compute what the factors add to `base`, the parameter before any change. scale: alpha / rank.

    Raises ValueError or RuntimeError if their shapes do not fit.
    """
    shape = tuple(base.shape)
    used = FORMULAS[formula]
    change = used.compute(factors, shape)
    if used.replaces:
        return change - base
    change = change * scale
    for role in DORA:
        if role in factors:
            change = _rescaled(base + change, factors[role], by_shape=role == "dora_scale") - base
    return change


def low_rank_product(up: Tensor, down: Tensor, shape: Sequence[int]) -> Tensor:
    """Return up @ down as a weight of `shape`. For a convolution, `down` has the kernel, and that of `up` is 1."""
    return (up.flatten(1) @ down.flatten(1)).reshape(tuple(shape))


def factors_fit(up: Shape, down: Shape, weight: Shape) -> bool:
    """Return whether the product of factors with the shapes `up` and `down` has the shape `weight`."""
    if min(len(down), len(up), len(weight)) < 2 or up[1] != down[0]:
        return False
    return up[0] == weight[0] and math.prod(up[2:]) == 1 and down[1:] == weight[1:]


# ---- the formulas ----


def _lora(factors: Factors, shape: Shape) -> Tensor:
    up, down = _matrix(factors["up"]), _matrix(factors["down"])
    if "mid" in factors:
        return _fitted(_with_core(factors["mid"], up.T, down), shape)
    return _fitted(up @ down, shape)


def _loralib(factors: Factors, shape: Shape) -> Tensor:
    """Multiply loralib's factors; those of convolutions as in Text-To-Video-Finetuning: (r·k, i·k) and (o·k, r·k).

    A kernel (k, 1, 1) is the mean of k kernels.
    """
    product = _matrix(factors["B"]) @ _matrix(factors["A"])
    if len(shape) < 4:
        return _fitted(product, shape)
    o, i, k = shape[:3]
    if product.shape != (o * k, i * k):
        raise ValueError(f"{tuple(product.shape)} does not fit {shape}")
    kernels = product.reshape(o, i, k, k)
    return (kernels if len(shape) == 4 else kernels.mean(-1)).reshape(shape)


def _loha(factors: Factors, shape: Shape) -> Tensor:
    first, second = (_half(factors, f"hada_w{half}", f"hada_t{half}") for half in (1, 2))
    return _fitted(first * second, shape)


def _lokr(factors: Factors, shape: Shape) -> Tensor:
    first, second = (_half(factors, f"lokr_w{half}", f"lokr_t{half}") for half in (1, 2))
    first = first.reshape(*first.shape, *[1] * (second.dim() - first.dim()))
    # kron needs contiguous memory, which einsum's result is not
    return _fitted(torch.kron(first, second.contiguous()), shape)


def _half(factors: Factors, name: str, core: str) -> Tensor:
    """Return one of the two matrices of LoHa or LoKr: stored whole, or as a product with or without a core."""
    if name in factors:
        return factors[name]
    a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    return _with_core(factors[core], a, b) if core in factors else a @ b


def _embedding(factors: Factors, shape: Shape) -> Tensor:
    return _fitted((factors["embedding_B"] @ factors["embedding_A"]).T, shape)


def _diff(factors: Factors, shape: Shape) -> Tensor:
    """Return the only tensor that the file has for this parameter."""
    [tensor] = factors.values()
    return _fitted(tensor, shape)


def _matrix(factor: Tensor) -> Tensor:
    """Flatten a factor into a matrix, with the kernel axes among its columns."""
    if factor.dim() < 2:
        raise ValueError(f"a factor has the shape {tuple(factor.shape)}")
    return factor.flatten(1)


def _with_core(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """Multiply a Tucker decomposition: core (r, r, ...), outputs (r, o), inputs (r, i). Returns (o, i, ...)."""
    return torch.einsum("rs...,ro,si->oi...", core, outputs, inputs)


def _fitted(change: Tensor, shape: Shape) -> Tensor:
    """Reshape a change to its parameter's shape. It may lack trailing ones, or have the kernel among its columns.

    Raises ValueError if it does not fit.
    """
    flat = (*shape[:1], math.prod(shape[1:])) if len(shape) > 1 else shape
    if _without_ones(tuple(change.shape)) not in (_without_ones(shape), _without_ones(flat)):
        raise ValueError(f"{tuple(change.shape)} does not fit {shape}")
    return change.reshape(shape)


def _without_ones(shape: Shape) -> Shape:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _rescaled(weight: Tensor, magnitude: Tensor, *, by_shape: bool) -> Tensor:
    """Give each output's weights their own length, as in DoRA (Liu et al. 2024, eq. 5).

    magnitude: one length per output. by_shape: LyCORIS may store one per input instead, as (1, i, ...).
    """
    axis = 1 if by_shape and magnitude.shape[:1] != weight.shape[:1] else 0
    lengths = weight.transpose(0, axis).flatten(1).norm(dim=1)
    if magnitude.numel() != lengths.numel():
        raise ValueError(f"{magnitude.numel()} magnitudes do not fit {tuple(weight.shape)}")
    factor = (magnitude.flatten() / lengths).reshape(-1, *[1] * (weight.dim() - 1))
    return weight * factor.transpose(0, axis)


DORA = ("magnitude", "dora_scale")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def _kron_sets(half: int) -> tuple[tuple[str, ...], ...]:
    """List the ways to store one of LoKr's two matrices."""
    whole = f"lokr_w{half}"
    return (whole,), (f"{whole}_a", f"{whole}_b", f"lokr_t{half}"), (f"{whole}_a", f"{whole}_b")


FORMULAS: Mapping[str, Formula] = {
    "lora": Formula(_lora, (("up", "down", "mid"), ("up", "down")), optional=DORA, ranks=("down",)),
    "loralib": Formula(_loralib, (("A", "B"),), ranks=("A",)),
    "loha": Formula(_loha, ((*_HADA, "hada_t1", "hada_t2"), _HADA), optional=DORA, ranks=("hada_w1_b",)),
    "lokr": Formula(
        _lokr,
        tuple((*first, *second) for first, second in itertools.product(_kron_sets(1), _kron_sets(2))),
        optional=DORA,
        ranks=("lokr_w2_b", "lokr_w1_b"),
    ),
    "embedding": Formula(_embedding, (("embedding_A", "embedding_B"),), ranks=("embedding_A",)),
    "difference": Formula(_diff, (("diff",), ("w_norm",)), scaled=False),
    "replacement": Formula(_diff, (("weight",),), scaled=False, replaces=True),
    "bias": Formula(_diff, (("up_bias",),), parameter="bias"),
    "bias difference": Formula(_diff, (("diff_b",), ("b_norm",)), parameter="bias", scaled=False),
    "bias replacement": Formula(_diff, (("bias",),), parameter="bias", scaled=False, replaces=True),
    # the shifts and scales of Wan's blocks and its last layer
    "table difference": Formula(_diff, (("diff_m",),), parameter="scale_shift_table", scaled=False),
}
