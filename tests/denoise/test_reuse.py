"""Deep features that are reused over several steps, and hidden states in host memory."""

import weakref
from typing import Any

import pytest
import torch
from oracles.networks import levels, one_rank, our_unet
from oracles.reference import relative_error, tiny_unet
from torch import Tensor, nn

from vinfinity.models.frame_text import FrameText
from vinfinity.models.offload import DeviceStore, HostStore
from vinfinity.models.unet3d.unet import DeepFeatures
from vinfinity.parallel.context import temporal_context
from vinfinity.parallel.exchange import TracedExchange
from vinfinity.parallel.scopes import Scopes
from vinfinity.parallel.shards import FrameShards

FOUR = {**levels("AAA-"), "block_out_channels": (16, 32, 32, 32), "layers_per_block": 2}
FRAMES = 5


def step(seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Latents (b, 4, f, h, w) and text states of one step."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, FRAMES, 9, 13, generator=generator)
    return x, torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(9)).expand(batch, -1, -1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_reuse_equals_diffusers_unet_with_features_of_the_earlier_step(depth: int) -> None:
    """The input of diffusers' outermost decoder levels is replaced by that of an earlier step."""
    reference = tiny_unet(**FOUR)
    ours, ctx = our_unet(reference), one_rank(FRAMES, None)
    (earlier, text), (later, _) = step(1), step(2)
    stored: list[Tensor] = []

    def replace(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if not stored:
            stored.append(kwargs["hidden_states"].clone())
        return args, {**kwargs, "hidden_states": stored[0]}

    reference.up_blocks[-depth].register_forward_pre_hook(replace, with_kwargs=True)
    deep = DeepFeatures(depth)
    with torch.no_grad():
        for x, t, renew in ((earlier, 700, True), (later, 600, False)):
            deep.renew = renew
            wanted = reference(x, t, text).sample
            got = ours(x, torch.tensor([t]), FrameText.same(text), ctx, deep=deep)
            assert relative_error(got, wanted) <= 1e-4
        exact = ours(later, torch.tensor([600]), FrameText.same(text), ctx)
    assert relative_error(got, exact) > 1e-2, "reuse changes nothing"


def test_skipped_levels_do_not_communicate() -> None:
    ours = our_unet(tiny_unet(**FOUR))
    shards = FrameShards(3 * FRAMES, 3)
    waits: dict[int | None, int] = {}
    for depth in (1, 2, 3, None):
        exchange = TracedExchange(1, shards)
        ctx = temporal_context(exchange, shards, 1, Scopes(2, 4))
        deep = None if depth is None else DeepFeatures(depth)
        x, text = step(3)
        with torch.no_grad():
            for renew in (True, False):
                if deep is not None:
                    deep.renew = renew
                before = exchange.counters.waits
                ours(x, torch.tensor([500]), FrameText.same(text), ctx, deep=deep)
        waits[depth] = exchange.counters.waits - before
    # a temporal convolution waits four times, a temporal transformer twice; a level has two layers down and three up
    level, without_attention, middle = (4 + 2) * (2 + 3), 4 * (2 + 3), 4 + 2 + 4
    assert waits == {
        depth: 2 + depth * level if depth else 2 + 3 * level + without_attention + middle
        for depth in (1, 2, 3, None)
    }


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
@pytest.mark.parametrize("reuse", [False, True])
def test_hidden_states_in_host_memory_do_not_change_the_result(chunk_bytes: int, reuse: bool) -> None:
    """With chunk_bytes 1, frames are fetched one by one, each during the work on the one before."""
    ours = our_unet(tiny_unet(**FOUR))
    shards = FrameShards(FRAMES)
    outputs = []
    for store in (DeviceStore(), HostStore(torch.device("cpu"))):
        ctx = temporal_context(one_rank(FRAMES, None).exchange, shards, 0, None, chunk_bytes=chunk_bytes)
        deep = DeepFeatures(2) if reuse else None
        with torch.no_grad():
            for renew in (True, False):
                if deep is not None:
                    deep.renew = renew
                x, text = step(4 + renew, batch=2)
                got = ours(x, torch.tensor([500]), FrameText.same(text), ctx, store=store, deep=deep)
        outputs.append(got)
    assert torch.equal(*outputs)


def test_host_memory_returns_the_stored_states_in_spans_of_any_size() -> None:
    x = torch.randn(2, 7, 3, 4, 5)
    stored = HostStore(torch.device("cpu")).keep(x)
    assert (stored.shape, stored.dtype) == (x.shape, x.dtype)
    # forwards, with a shorter last span, and again from the start
    for size in (1, 2, 3, 7):
        parts = [stored.read(slice(start, min(start + size, 7))) for start in range(0, 7, size)]
        assert torch.equal(torch.cat(parts, dim=1), x)
    assert torch.equal(stored.read(slice(2, 4)), x[:, 2:4])


def test_old_features_are_freed_before_new_ones_are_computed() -> None:
    ours, deep = our_unet(tiny_unet(**FOUR)), DeepFeatures(1)
    x, text = step(5)
    with torch.no_grad():
        ours(x, torch.tensor([500]), FrameText.same(text), one_rank(FRAMES, None), deep=deep)
        old = weakref.ref(deep.stored)
        alive: list[bool] = []
        ours.mid_block.register_forward_pre_hook(lambda *_: alive.append(old() is not None))
        ours(x, torch.tensor([400]), FrameText.same(text), one_rank(FRAMES, None), deep=deep)
    assert alive == [False]
    assert deep.stored is not None
