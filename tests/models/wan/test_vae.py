"""The causal autoencoder against diffusers, and its streams against the whole video."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan as TheirVAE
from oracles.reference import relative_error
from oracles.wan_autoencoder import our_wan_vae, raw_latents, tiny_wan_vae

from vinfinity.models.wan.vae import AutoencoderKLWan
from vinfinity.models.wan.vae_config import WanVAEConfig
from vinfinity.planning.meter import LiveBytes, WorkCounter

CLOSE = 1e-4
SETTINGS: dict[str, dict[str, Any]] = {
    "as published, narrow": {},
    "another width for decoding": {"decoder_base_dim": 16},
    "two levels, one resnet": {
        "dim_mult": [1, 2],
        "temperal_downsample": [True],
        "num_res_blocks": 1,
        "scale_factor_temporal": 2,
        "scale_factor_spatial": 2,
    },
    "frames doubled at other levels": {"temperal_downsample": [True, False, True]},
}
Note = Callable[[str, float], None]


def decoded(autoencoder: AutoencoderKLWan, latents: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Return the frames (F, 3, H, W) from a latent frame on, given only what it needs. latents: (c, n, h, w)."""
    first = autoencoder.stream(start).first
    return torch.stack(list(autoencoder.decode_frames(latents[:, first:].unbind(1), start=start)))


def grouped(frames: torch.Tensor, scale: int = 4) -> list[torch.Tensor]:
    """Return the frames of each latent frame. frames: (F, 3, H, W)."""
    return [frames[:1], *(frames[at : at + scale] for at in range(1, len(frames), scale))]


def latents_of(autoencoder: AutoencoderKLWan, frames: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Return the latents (c, n, h, w) from a latent frame on, given only the frames that it needs."""
    stream = autoencoder.encoder_stream(start)
    groups = grouped(frames, autoencoder.config.time_downscale)
    parts = [stream.encode(group) for group in groups[stream.first :]]
    return torch.cat(parts)[start - stream.first :].transpose(0, 1)


@pytest.mark.parametrize(
    ("latents", "size"),
    [(1, (3, 5)), (2, (4, 4)), (3, (7, 2)), (5, (1, 1)), (8, (3, 2)), (21, (2, 3))],
    ids=str,
)
def test_decode_matches_diffusers(latents: int, size: tuple[int, int], record_worst: Note) -> None:
    reference = tiny_wan_vae()
    x = torch.randn(1, 4, latents, *size)
    expected = reference.decode(raw_latents(reference, x)).sample[0].transpose(0, 1)
    ours = decoded(our_wan_vae(reference), x[0])
    assert ours.shape == expected.shape == (4 * latents - 3, 3, 8 * size[0], 8 * size[1])
    # diffusers limits frames to [-1, 1]; media/decode does so when it makes pixels of them
    error = relative_error(ours.clamp(-1, 1), expected)
    record_worst(f"wan vae, decode, {latents} latents", error)
    assert error <= CLOSE


@pytest.mark.parametrize("name", SETTINGS)
def test_architectures_match_diffusers(name: str, record_worst: Note) -> None:
    reference = tiny_wan_vae(**SETTINGS[name])
    ours = our_wan_vae(reference)
    x = torch.randn(1, 4, 4, 3, 5)
    expected = reference.decode(raw_latents(reference, x)).sample[0].transpose(0, 1)
    assert len(expected) == 1 + 3 * ours.config.time_downscale
    error = relative_error(decoded(ours, x[0]).clamp(-1, 1), expected)
    record_worst(f"wan vae, decode, {name}", error)
    assert error <= CLOSE


@pytest.mark.parametrize(
    ("frames", "size"), [(1, (24, 40)), (5, (16, 8)), (9, (8, 8)), (41, (24, 16)), (81, (8, 16))], ids=str
)
def test_encode_matches_diffusers(frames: int, size: tuple[int, int], record_worst: Note) -> None:
    reference = tiny_wan_vae()
    x = torch.rand(1, 3, frames, *size) * 2 - 1
    expected = reference.encode(x).latent_dist
    stream = our_wan_vae(reference).encoder_stream()
    moments = [stream.posterior(group) for group in grouped(x[0].transpose(0, 1))]
    mean, deviation = (torch.stack(parts, dim=1)[None] for parts in zip(*moments, strict=True))
    errors = relative_error(mean, expected.mean), relative_error(deviation, expected.std)
    record_worst(f"wan vae, encode, {frames} frames", max(errors))
    assert max(errors) <= CLOSE


def test_latents_of_the_diffusion_model_decode_to_what_was_encoded_by_diffusers() -> None:
    """Encoding normalises as WanPipeline expects it, and decoding takes that back."""
    reference = tiny_wan_vae()
    x = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    latents = latents_of(our_wan_vae(reference), x[0].transpose(0, 1))[None]
    expected = reference.encode(x).latent_dist.mean
    torch.testing.assert_close(raw_latents(reference, latents), expected, rtol=1e-4, atol=1e-5)


def test_frames_that_fill_no_latent_frame_are_refused() -> None:
    stream = our_wan_vae(tiny_wan_vae()).encoder_stream()
    stream.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"^frames: got 2 for latent frame 1, which has 4"):
        stream.encode(torch.zeros(2, 3, 8, 8))


# ---- beginning in the middle ----


@pytest.mark.parametrize("name", SETTINGS)
def test_latents_from_any_latent_frame_on_are_those_of_the_whole_video(name: str) -> None:
    ours = our_wan_vae(tiny_wan_vae(**SETTINGS[name]))
    far = 1000
    reach, scale = far - ours.encoder.first(far), ours.config.time_downscale
    frames = torch.rand(1 + (reach + 3) * scale, 3, 8, 16) * 2 - 1
    whole = latents_of(ours, frames)
    for start in (0, 1, 2, reach - 1, reach, reach + 1, reach + 3):
        assert ours.encoder_stream(start).first == max(0, start - reach)
        assert torch.equal(latents_of(ours, frames, start), whole[:, start:])


def test_the_reach_of_the_encoder_is_exact() -> None:
    """Of the earlier frames, exactly those that the layers reach change a latent frame."""
    ours = our_wan_vae(tiny_wan_vae(base_dim=4)).double()
    last = 32
    first = ours.encoder.first(last)
    assert first == last - 28
    frames = torch.rand(1 + 4 * last, 3, 8, 8, dtype=torch.float64)
    exact = latents_of(ours, frames)[:, last]
    # the last frame of that latent frame, not the one before
    for frame, matters in ((4 * first - 1, False), (4 * first, True)):
        changed = frames.clone()
        changed[frame] += 10.0
        assert torch.equal(latents_of(ours, changed)[:, last], exact) is not matters


@pytest.mark.parametrize("name", SETTINGS)
def test_frames_from_any_latent_frame_on_are_those_of_the_whole_video(name: str) -> None:
    ours = our_wan_vae(tiny_wan_vae(**SETTINGS[name]))
    reach, scale = ours.warm_up.latents, ours.config.time_downscale
    latents = torch.randn(4, reach + 5, 1, 2)
    whole = decoded(ours, latents)
    for start in (0, 1, 2, 3, reach // 2, reach - 1, reach, reach + 1, reach + 4):
        assert ours.stream(start).first == max(0, start - reach)
        part = decoded(ours, latents, start)
        assert torch.equal(part, whole[max(0, 1 + (start - 1) * scale) :])


def test_the_receptive_field_is_exact() -> None:
    """Of the earlier latent frames, exactly those that the layers reach change a frame."""
    ours = our_wan_vae(tiny_wan_vae(base_dim=4)).double()
    reach = ours.warm_up.latents
    latents = torch.randn(4, reach + 4, 1, 1, dtype=torch.float64)
    last = decoded(ours, latents)[-4:]
    for frame, matters in ((2, False), (3, True), (4, True)):
        changed = latents.clone()
        changed[:, frame] += 10.0
        # of the last latent frame, the first frame reaches the farthest
        assert torch.equal(decoded(ours, changed)[-4:][0], last[0]) is not matters


def test_the_published_decoder_reaches_38_latent_frames_and_begins_for_the_price_of_7() -> None:
    with torch.device("meta"):
        warm_up = AutoencoderKLWan(WanVAEConfig()).warm_up
    assert warm_up.latents == 38
    assert 6.5 < warm_up.cost < 7.0


def test_the_price_of_beginning_matches_a_trace() -> None:
    with torch.device("meta"):
        ours, latent = AutoencoderKLWan(WanVAEConfig()), torch.empty(1, 16, 8, 8)
    far = 100
    stream = ours.stream(far)
    work = []
    for frame in range(stream.first, far + 1):
        with torch.inference_mode(), WorkCounter() as counter:
            frames = list(stream.decode(latent))
        assert len(frames) == (4 if frame == far else 0)
        work.append(counter.flops)
    assert sum(work[:-1]) / work[-1] == pytest.approx(ours.warm_up.cost, rel=0.02)


# ---- memory ----


def test_300_latent_frames_are_decoded_in_flat_memory() -> None:
    ours = our_wan_vae(tiny_wan_vae(base_dim=4))
    now: list[int] = []
    with torch.inference_mode(), LiveBytes("cpu") as live:
        latents = (torch.randn(4, 1, 2) for _ in range(300))
        for count, _ in enumerate(ours.decode_frames(latents), start=1):
            if count in (200, 1197):
                now.append(live.peak)
    assert count == 1197
    assert now[0] == now[1]


def test_encoding_takes_flat_memory() -> None:
    ours = our_wan_vae(tiny_wan_vae(base_dim=4))
    peaks = []
    for frames in (41, 401):
        with torch.inference_mode(), LiveBytes("cpu") as live:
            stream = ours.encoder_stream()
            for latent in range(1 + frames // 4):
                stream.encode(torch.rand(4 if latent else 1, 3, 8, 16))
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("size", [(60, 104), (9, 20)], ids=str)
@pytest.mark.parametrize("name", ["as published", *SETTINGS])
def test_the_channels_of_the_config_match_a_trace(
    name: str, size: tuple[int, int], record_worst: Note
) -> None:
    config = WanVAEConfig()
    if name in SETTINGS:
        config = WanVAEConfig.from_dict({**tiny_wan_vae().config, **SETTINGS[name]})
    with torch.device("meta"):
        ours, latent = AutoencoderKLWan(config), torch.empty(1, config.z_dim, *size)
    pixels = 4 * size[0] * size[1] * config.downscale**2
    stream = ours.stream()
    with torch.inference_mode(), LiveBytes() as live:
        for _ in range(3):
            for _ in stream.decode(latent):
                pass
    record_worst("channels at the peak, of those traced", pixels * config.peak_channels / live.peak)
    assert 0.95 <= pixels * config.peak_channels / live.peak <= 1.1
    assert stream.bytes / (pixels * config.kept_channels) == pytest.approx(1, rel=0.01)


# ---- names and configurations ----


def test_names_and_shapes_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        ours, theirs = AutoencoderKLWan(WanVAEConfig()), TheirVAE()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert WanVAEConfig.from_dict(theirs.config) == WanVAEConfig(
        scale_factor_temporal=4, scale_factor_spatial=8
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_residual": True}, "is_residual: true is the autoencoder of Wan 2.2"),
        ({"in_channels": 12}, "in_channels: 12 is not 3"),
        ({"patch_size": 2}, "patch_size: 2 is not supported"),
        ({"attn_scales": [0.5]}, r"attn_scales: \[0.5\] is not supported"),
        ({"z_dim": 16}, "latents_mean: 4 numbers for 16 channels"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, r"latents_std\[1\]: 0.0 is not a number above 0"),
        ({"dim_mult": [1, 2]}, "temperal_downsample: 3 entries for 2 in dim_mult"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial: 16, but its levels make it 8"),
        ({"clip_output": True}, "clip_output: True is not supported"),
    ],
    ids=str,
)
def test_unsupported_autoencoders_are_refused_naming_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        WanVAEConfig.from_dict({**tiny_wan_vae().config, **changes})
