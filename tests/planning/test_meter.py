"""What meters count does not depend on which operations they have seen before."""

from collections.abc import Callable

import pytest
import torch

from vinfinity.planning.meter import LiveBytes, WorkCounter


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(4, 6, device="meta"), torch.empty(4, 6, device="meta")


def test_operations_in_place_return_the_tensor_that_they_were_given() -> None:
    with LiveBytes() as live:
        for _ in range(2):
            x, out = tensors()
            assert x.add_(1) is x
            assert x.clamp_(min=0) is x
            assert torch.mul(x, 2, out=out) is out
            assert torch.mul(x, 2) is not x
            del x, out
        # both, and the product
        assert (live.now, live.peak) == (0, 3 * 4 * 6 * 4)


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda x: x.t_(), (6, 4)),
        (lambda x: x.unsqueeze_(0), (1, 4, 6)),
        (lambda x: x.resize_(2, 3), (2, 3)),
        (lambda x: torch.sum(torch.ones(2, 3, device="meta"), 0, out=x.resize_(0)), (3,)),
    ],
    ids=["t_", "unsqueeze_", "resize_", "out="],
)
def test_operations_that_change_a_tensors_shape_change_it_each_time(
    change: Callable[[torch.Tensor], object], shape: tuple[int, ...]
) -> None:
    with LiveBytes():
        for x in tensors():
            change(x)
            assert x.shape == shape


def test_work_is_counted_again_for_known_shapes() -> None:
    counts = []
    for _ in range(2):
        with WorkCounter() as work:
            for x in tensors():
                x.addcmul_(x, x)
                x @ x.t()
        counts.append((work.flops, dict(work.operations)))
    assert counts[0] == counts[1]
    # 2 of each: in place, three inputs and a result of 96 bytes; a product that reads twice 96 bytes and writes 64
    assert counts[0] == (2 * 2 * 4 * 4 * 6, {(0, 4 * 96): 2, (2 * 4 * 4 * 6, 2 * 96 + 64): 2})
