"""Kernels that the networks of all families share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vinfinity.models import kernels
from vinfinity.models.kernels import attend, is_matrix, linear
from vinfinity.models.unet3d.norm import apply_affine, channel_moments
from vinfinity.planning.meter import LiveBytes, Meter

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


@pytest.mark.parametrize("bias", [None, torch.randn(6)], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_can_be_written_where_it_is_needed(dtype: torch.dtype, bias: torch.Tensor | None) -> None:
    x, weight = torch.randn(3, 4, 10).to(dtype), torch.randn(6, 10).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    expected = linear(x, weight, bias)
    for place in (slice(0, 3), slice(2, 5)):
        stored = torch.zeros(5, 4, 9, dtype=dtype)
        out = stored[place, :, 3:]
        assert linear(x, weight, bias, out=out) is out
        torch.testing.assert_close(stored[place, :, 3:], expected)
        assert not stored[..., :3].any()


def test_a_product_is_written_without_a_copy_where_vectors_are_at_equal_distances() -> None:
    stored = torch.empty(8, 4, 9, device="meta", dtype=torch.float16)
    x, weight = (torch.empty(*shape, device="meta", dtype=torch.float16) for shape in ((2, 4, 5), (6, 5)))
    assert is_matrix(stored[2:4, :, 3:])
    assert not is_matrix(stored[:, 1:3])
    assert not is_matrix(stored[..., ::2])
    apart = torch.empty(2, 8, 6, device="meta", dtype=torch.float16)

    def temporaries(out: torch.Tensor) -> int:
        with torch.inference_mode(), LiveBytes() as live:
            linear(x, weight, out=out)
        return live.peak - sum(tensor.untyped_storage().nbytes() for tensor in (x, weight, out))

    assert temporaries(stored[2:4, :, 3:]) == 0
    assert temporaries(apart[:, :4]) > 0


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_cpu_a_frame_has_the_same_bits_in_one_group_as_in_several(
    dtype: torch.dtype, threads: int
) -> None:
    """What the layers of a UNet compute for groups of 8 frames, many at once and one at a time. In 16 bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for height, width, channels, more in SIZES:
            x = torch.randn(48, height, width, channels).to(dtype)
            for layer in layers(channels, more, dtype):
                with torch.inference_mode():
                    apart = torch.cat([layer(x[at : at + 8]) for at in range(0, 48, 8)])
                    for size in (16, 24, 48):
                        together = torch.cat([layer(x[at : at + size]) for at in range(0, 48, size)])
                        assert torch.equal(together, apart), (height, width, channels, more, size)
    finally:
        torch.set_num_threads(before)


SIZES = [(1, 1, 16, 16), (2, 3, 32, 48), (3, 4, 192, 96), (4, 6, 48, 48), (7, 5, 24, 40), (10, 16, 64, 128)]


def layers(channels: int, more: int, dtype: torch.dtype) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Layers of frames (f, h, w, c). more: channels of results."""
    weight, bias = torch.randn(more, channels).to(dtype), torch.randn(more).to(dtype)
    kernel = torch.randn(more, channels, 3, 3).to(dtype)
    scale = torch.randn(2, channels)

    def product(x: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(*x.shape[:-1], 2 * more)[..., more:]
        return linear(x, weight, out=out)

    return [
        lambda x: linear(x, weight, bias),
        product,
        lambda x: kernels.convolve(x.permute(0, 3, 1, 2), kernel, bias, padding=1),
        lambda x: F.layer_norm(x, (channels,)),
        lambda x: F.gelu(x),
        lambda x: F.silu(x),
        lambda x: apply_affine(x, *scale),
        lambda x: torch.stack(channel_moments(x.flatten(1, 2)), dim=1),
    ]
