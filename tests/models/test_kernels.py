"""Kernels that the networks of all families share."""

from typing import Any

import torch

from vinfinity.models import kernels
from vinfinity.models.kernels import attend
from vinfinity.planning.meter import Meter

aten = torch.ops.aten


class Batches(Meter):
    """The batches of all calls of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def record(self, function: Any, args: Any, kwargs: object, out: object) -> None:
        if getattr(function, "overloadpacket", None) is aten.scaled_dot_product_attention:
            self.sizes.append(args[0].shape[0])


def test_attention_runs_in_batches_that_kernels_on_gpus_take() -> None:
    with torch.inference_mode(), Batches() as batches:
        q, k = (torch.empty(140_000, 1, count, 8, device="meta") for count in (3, 5))
        assert attend(q, k, k).shape == q.shape
    assert sum(batches.sizes) == 140_000
    assert max(batches.sizes) <= 65_535


def test_attention_in_several_batches_is_that_of_one(monkeypatch: Any) -> None:
    q, k, v = (torch.randn(7, 2, count, 8) for count in (6, 5, 5))
    bias = torch.randn(6, 5)
    whole = attend(q, k, v, bias=bias)
    monkeypatch.setattr(kernels, "ATTENTION_BATCH", 3)
    assert torch.equal(attend(q, k, v, bias=bias), whole)
