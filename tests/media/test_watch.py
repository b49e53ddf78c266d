"""Cheap figures of a run: seams at borders, drift and change, of frames and of latents as they are read."""

import numpy as np
import pytest
import torch
from oracles.synthetic import changed, panning

from vinfinity.media.latents import TensorLatents
from vinfinity.media.watch import FrameWatch, LatentWatch, VideoFigures, VideoWatch

FRAMES = 48


def figures(
    video: np.ndarray, *, borders: tuple[int, ...] = (), one_prompt: bool = True, first: int = 0
) -> VideoFigures:
    frames = FrameWatch(len(video))
    for index in range(first, len(video)):
        frames.add(index, video[index])
    latents = LatentWatch(TensorLatents(torch.randn(1, 4, len(video), 6, 6)), len(video))
    for start in range(0, len(video), 8):
        latents.read(range(start, min(start + 8, len(video))))
    return VideoWatch(frames, latents).figures(
        borders=borders,
        latent_borders=borders,
        scenes=(),
        latent_scenes=(),
        one_prompt=one_prompt,
    )


def test_a_clean_video_raises_no_warning() -> None:
    found = figures(panning(FRAMES), borders=(16, 32))
    assert found.warnings == ()
    assert found.seam_ratio == pytest.approx(1, abs=0.1)
    assert found.change == pytest.approx(
        np.abs(np.diff(panning(FRAMES).astype(float), axis=0)).mean(), rel=0.02
    )


def test_a_jump_at_a_border_is_a_warning_with_its_size() -> None:
    video = np.concatenate([panning(FRAMES)[:16], panning(FRAMES + 8)[24:]])
    found = figures(video, borders=(16, 32))
    steps = np.abs(np.diff(video.astype(float), axis=0)).mean(axis=(1, 2, 3))
    ratio = steps[15] / np.delete(steps, [15, 31]).mean()
    [warning] = found.warnings
    assert warning == f"frame 16 begins at a border and changes {ratio:.1f} times as much as others"
    assert found.frames["seam_ratio"] == pytest.approx((ratio + 1) / 2, rel=0.05)


def test_drift_is_a_warning_unless_prompts_ask_for_it() -> None:
    ramp = changed(panning(FRAMES, speed=0.2), lambda t, frame: frame - 20 + 40 * t / FRAMES)
    [warning] = figures(ramp).warnings
    assert warning.startswith("brightness drifts by +3")
    assert figures(ramp, one_prompt=False).warnings == ()
    flat = changed(panning(FRAMES, speed=0.2), lambda t, frame: 128 + (frame - 128) * (1 - 0.8 * t / FRAMES))
    assert any(line.startswith("sharpness drifts by -7") for line in figures(flat).warnings)


def test_a_still_video_is_a_warning() -> None:
    [warning] = figures(np.repeat(panning(1), FRAMES, axis=0), borders=(16,)).warnings
    assert warning == "hardly anything moves: adjacent frames differ by 0.00 of 255 levels"


def test_frames_of_16_bits_give_the_figures_of_8() -> None:
    video = panning(8)
    deep, plain = figures(video.astype(np.uint16) * 257), figures(video)
    assert deep.frames["drift"] == pytest.approx(plain.frames["drift"])
    assert deep.change == pytest.approx(plain.change)


def test_frames_that_were_decoded_before_an_interruption_are_left_out() -> None:
    found = figures(panning(FRAMES), borders=(16, 32), first=24)
    seams = found.frames["seams"]
    assert isinstance(seams, list)
    assert [seam["frame"] for seam in seams] == [32]
    assert found.frames["drift"] == {"brightness": None, "sharpness": None, "saturation": None}
    assert found.change is not None


def test_a_single_frame_has_no_figures() -> None:
    assert figures(panning(1)).change is None


def test_latents_are_compared_across_blocks_in_whatever_order_they_are_read() -> None:
    x = torch.randn(1, 4, 20, 6, 6)
    expected = (x[0, :, 1:] - x[0, :, :-1]).abs().mean(dim=(0, 2, 3)).numpy()
    for blocks in ([0, 8, 16], [16, 0, 8], [8, 16, 0]):
        watch = LatentWatch(TensorLatents(x), 20)
        for start in blocks:
            frames = range(start, min(start + 8, 20))
            assert torch.equal(watch.read(frames), x[0, :, frames.start : frames.stop])
        assert watch.change[1:] == pytest.approx(expected, rel=1e-5)
        assert np.isnan(watch.change[0])
        assert watch.spread == pytest.approx(x[0].std(dim=(0, 2, 3), correction=0).numpy(), rel=1e-5)


def test_a_frame_that_is_read_again_for_the_contact_sheet_changes_nothing() -> None:
    x = torch.randn(1, 4, 20, 6, 6)
    watch = LatentWatch(TensorLatents(x), 20)
    for start in (0, 8, 16):
        watch.read(range(start, min(start + 8, 20)))
    before = watch.change.copy()
    watch.read(range(5, 6))
    assert watch.change == pytest.approx(before, nan_ok=True)


def test_memory_does_not_grow_with_blocks_that_overlap() -> None:
    """Ranks that decode Wan in turns are each given some latent frames before their own."""
    x = torch.randn(1, 4, 400, 6, 6)
    expected = (x[0, :, 1:] - x[0, :, :-1]).abs().mean(dim=(0, 2, 3)).numpy()
    watch = LatentWatch(TensorLatents(x), 400)
    for first in range(0, 400, 40):
        # rank 0 hands out the latents of the others before it reads its own
        for start in (first + 10, first + 20, first + 30, first):
            watch.read(range(max(0, start - 3), start + 10))
        # the last of these frames waits for the next one
        assert len(watch._edges) <= 1
    assert watch.change[1:] == pytest.approx(expected, rel=1e-5)


def test_frames_that_are_read_alone_are_compared_with_both_neighbours() -> None:
    x = torch.randn(1, 4, 3, 6, 6)
    expected = (x[0, :, 1:] - x[0, :, :-1]).abs().mean(dim=(0, 2, 3)).numpy()
    watch = LatentWatch(TensorLatents(x), 3)
    for frame in (1, 0, 0, 2):
        watch.read(range(frame, frame + 1))
    assert watch.change[1:] == pytest.approx(expected, rel=1e-5)
