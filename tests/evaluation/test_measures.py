"""Known answers: each planted fault is found with its size, and none is found in the clean video."""

import itertools
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracles.synthetic import FPS, changed, panning, save, texture, to_frames

import vinfinity
from vinfinity.evaluation.api import measure_all
from vinfinity.evaluation.repetition import NUMBERS, _returning
from vinfinity.evaluation.result import Evaluation
from vinfinity.evaluation.subject import ArraySource, Border, Subject

FRAMES = 96


@cache
def cyclic(frames: int = FRAMES) -> np.ndarray:
    """Return a clean video: a camera goes once around a texture, so that end and beginning look alike."""
    once = texture(1)
    around = np.concatenate([once, once], axis=1)
    width = once.shape[1]
    moves = [np.array([[1, 0, -t * width / frames], [0, 1, 0]], dtype=np.float32) for t in range(frames)]
    shots = [cv2.warpAffine(around, move, (width, once.shape[0])) for move in moves]
    return to_frames(np.stack(shots))


def measured(video: np.ndarray, **options: object) -> Evaluation:
    return vinfinity.evaluate(video, fps=FPS, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clean() -> Evaluation:
    return measured(cyclic(), every=24)


def test_a_clean_video_has_no_faults(clean: Evaluation) -> None:
    assert clean["seams.ratio"] == pytest.approx(1, abs=0.05)
    assert clean["seams.worst"] == pytest.approx(1, abs=0.1)
    assert (clean["seams.chance"] or 0) > 0.05
    assert (clean.cuts, clean.frozen) == ((), ())
    assert clean["drift.largest"] == pytest.approx(0, abs=3)
    assert clean["repetition.strength"] == 0
    assert clean["repetition.period"] is None
    # the last frame is next to the first
    assert (clean["repetition.returning"] or 0) < 2
    assert clean["flicker.pulsing"] == pytest.approx(0, abs=0.05)
    assert not any(trend.steady for name, trend in clean.trends.items() if name != "motion")


@pytest.mark.parametrize("speed", [0.25, 1.0, 3.0])
def test_flow_has_the_length_of_the_motion(speed: float) -> None:
    video = measured(panning(16, speed=speed))
    assert video["motion.length"] == pytest.approx(speed, rel=0.04)
    # 1/256 of the short side of 96 pixels is 0.375 pixels
    assert video["motion.moving"] == pytest.approx(100 if speed > 0.375 else 0, abs=3)
    assert video["motion.warp_error"] == pytest.approx(0, abs=0.05)


def test_flow_is_in_pixels_of_the_video_however_large_it_is() -> None:
    large = np.stack([cv2.resize(frame, None, fx=3, fy=3) for frame in panning(8, speed=2)])
    assert measured(large)["motion.length"] == pytest.approx(6, rel=0.04)


def test_moving_pixels_are_the_share_of_the_picture_that_moves() -> None:
    video = panning(16, speed=2)
    video[:, :, :80] = video[0, :, :80]
    assert measured(video)["motion.moving"] == pytest.approx(50, abs=5)


def test_warp_error_is_what_motion_does_not_explain() -> None:
    """Noise of 5 levels on both frames differs by 2 * 25 squared levels, as far as flow does not follow it."""
    noise = np.random.default_rng(0).normal(size=(16, *panning(1).shape[1:])) * 5
    video = measured(changed(panning(16), lambda t, frame: frame + noise[t]))
    assert video["motion.warp_error"] == pytest.approx(2 * 25 / 255**2 * 1000, rel=0.3)
    ratio, error = video["motion.warp_over_motion"], video["motion.warp_error"]
    assert ratio is not None
    assert error is not None
    # a pixel per frame, in units of 96 / 256 pixels
    assert ratio == pytest.approx(error / (256 / 96) ** 2, rel=0.15)


def test_a_jump_at_a_border_is_a_seam_of_its_size() -> None:
    video = cyclic().copy()
    # the camera jumps by 5 of its steps
    video[48:] = np.roll(video, -5, axis=0)[48:]
    result = measured(video, borders=[24, 48, 72])
    assert result.seams is not None
    worst = max(result.seams.seams, key=lambda seam: seam.value)
    assert worst.frame == 48
    assert worst.percentile == 100
    plain = cyclic().astype(float)
    jump, step = np.abs(plain[53] - plain[47]).mean(), np.abs(plain[24] - plain[23]).mean()
    assert worst.ratio == pytest.approx(jump / step, rel=0.03)
    assert worst.local_ratio == pytest.approx(jump / step, rel=0.03)
    assert result["seams.ratio"] == pytest.approx((jump / step + 2) / 3, rel=0.03)
    assert (result["seams.chance"] or 1) < 0.05


def test_a_seam_of_brightness_is_found_in_fast_motion_once_motion_is_undone() -> None:
    def darker(t: int, frame: np.ndarray) -> np.ndarray:
        return frame - 6 if t >= 24 else frame

    result = measured(changed(panning(48, speed=3), darker), borders=[24])
    assert (result["seams.ratio"] or 0) < 2
    assert (result["seams.warp_ratio"] or 0) > 20


def test_a_cut_is_found_at_its_frame_and_only_there() -> None:
    result = measured(np.concatenate([panning(40), panning(40, seed=5)]))
    assert result.cuts == (40,)
    assert result["cuts.count"] == 1
    # flow across the cut would be nonsense
    assert result["motion.length"] == pytest.approx(1, rel=0.05)


def test_a_frozen_span_is_found_with_its_length() -> None:
    video = cyclic().copy()
    video[40:64] = video[40]
    result = measured(video)
    assert result.frozen == (range(40, 64),)
    assert result["frozen.share"] == pytest.approx(25)
    assert result["frozen.longest"] == pytest.approx(1.0)


def test_a_still_video_is_frozen_and_nothing_else_is_claimed_of_it() -> None:
    result = measured(np.repeat(panning(1), 48, axis=0), every=12)
    assert result["frozen.share"] == 100
    assert result["motion.length"] == 0
    for name in ("seams.ratio", "repetition.strength", "repetition.returning", "closing.ratio"):
        assert result[name] is None
    assert result["motion.warp_over_motion"] is None


@pytest.mark.parametrize("crf", [4, 18, 23])
def test_key_frames_do_not_divide_a_frozen_span(crf: int, tmp_path: Path) -> None:
    """At frame 24, a second into the video, the encoder draws the picture anew: it changes by up to 2 levels."""
    video = panning(36, speed=2)
    video[20:34] = video[20]
    result = vinfinity.evaluate(save(tmp_path / "frozen.mp4", video, fps=12, crf=crf))
    assert result.frozen == (range(20, 34),)


def test_pictures_that_are_shown_twice_are_not_frozen() -> None:
    """Animation on twos: every second pair moves."""
    assert measured(np.repeat(panning(24, speed=0.5), 2, axis=0)).frozen == ()


def test_a_slow_fade_is_not_frozen() -> None:
    still = np.repeat(panning(1), 48, axis=0)
    assert measured(changed(still, lambda t, frame: frame + t * 0.5)).frozen == ()


def test_a_small_thing_that_moves_is_not_frozen() -> None:
    video = np.repeat(panning(1), 48, axis=0)
    for index, frame in enumerate(video):
        frame[40:46, index : index + 6] = 255
    assert measured(video).frozen == ()


def test_a_repeated_clip_is_found_with_its_period() -> None:
    clip = panning(24, speed=2)
    result = measured(np.concatenate([clip] * 4))
    assert result["repetition.period"] == pytest.approx(1.0)
    assert result["repetition.strength"] == pytest.approx(1.0, abs=0.01)
    assert result["repetition.returning"] == pytest.approx(100)


def test_a_loop_closes_and_a_walk_does_not(clean: Evaluation) -> None:
    assert clean["closing.ratio"] == pytest.approx(1, rel=0.05)
    assert (measured(panning(48))["closing.ratio"] or 0) > 3


def test_flicker_is_found_with_its_size(clean: Evaluation) -> None:
    flickering = measured(changed(cyclic(), lambda t, frame: frame + (4 if t % 2 else -4)))
    assert flickering["flicker.pulsing"] == pytest.approx(8, rel=0.02)
    assert (flickering["flicker.score"] or 1) < (clean["flicker.score"] or 0)


def test_cuts_that_were_asked_for_do_not_pulse() -> None:
    scenes = np.repeat(np.array([60, 120, 60, 120], dtype=np.uint8), 24)
    video = np.broadcast_to(scenes[:, None, None, None], (FRAMES, 32, 32, 3)).copy()
    # a flash within a scene is flicker
    flashing = video.copy()
    flashing[34] += 47

    def pulsing(frames: np.ndarray) -> float | None:
        cuts = tuple(Border(frame, "scene") for frame in (24, 48, 72))
        subject = Subject("scenes", ArraySource(frames, Fraction(FPS)), borders=cuts)
        return measure_all([subject], shown=False).evaluations[0]["flicker.pulsing"]

    assert pulsing(video) == 0
    # of the 94 frames between others, 6 are beside cuts
    assert pulsing(flashing) == pytest.approx((47 + 2 * 47 / 2) / 88)
    assert pulsing(video[23:25]) is None


def test_flicker_is_vbenchs_formula() -> None:
    """vbench/temporal_flickering.py: mean of cv2.absdiff in float32, over channels and pixels, then over pairs."""
    video = np.random.default_rng(3).integers(0, 256, (7, 33, 51, 3), dtype=np.uint8)
    errors = [
        np.mean(cv2.absdiff(np.array(a, dtype=np.float32), np.array(b, dtype=np.float32)))
        for a, b in itertools.pairwise(video)
    ]
    expected = (255.0 - np.mean(np.array(errors)).item()) / 255.0
    assert measured(video)["flicker.score"] == pytest.approx(expected, abs=1e-6)


RAMPS: dict[str, tuple[Callable[[int, np.ndarray], np.ndarray], float]] = {
    # from the middle of the first 15 % to that of the last, of a ramp over the whole video: 0.85 of it
    "brightness": (lambda t, frame: frame - 15 + 30 * t / (FRAMES - 1), 0.85 * 30),
    "sharpness": (lambda t, frame: 128 + (frame - 128) * (1 - 0.5 * t / (FRAMES - 1)), -44.2),
    "saturation": (
        lambda t, frame: (
            frame.mean(2, keepdims=True) + (frame - frame.mean(2, keepdims=True)) * (1 - t / (FRAMES - 1))
        ),
        -0.85,
    ),
}


@pytest.mark.parametrize("name", RAMPS)
def test_drift_is_found_with_its_size_and_as_a_trend(name: str, clean: Evaluation) -> None:
    change, expected = RAMPS[name]
    result = measured(changed(cyclic(), change))
    if name == "saturation":
        # of the saturation that there is
        expected *= float(clean.curves["saturation"].mean())
    assert result[f"drift.{name}"] == pytest.approx(expected, rel=0.1)
    trend = result.trends[name]
    assert trend.steady
    assert trend.low <= trend.rise <= trend.high
    assert (trend.rise < 0) == (expected < 0)


def test_drift_of_colour_is_found() -> None:
    result = measured(changed(cyclic(), lambda t, frame: frame + np.array([1, 0, -1]) * 20 * t / FRAMES))
    assert (result["drift.colour"] or 0) > 8
    assert (result["drift.histogram"] or 0) > 10
    assert result["drift.largest"] == pytest.approx(result["drift.colour"])
    assert abs(result["drift.brightness"] or 9) < 5


def test_short_and_small_videos_are_measured() -> None:
    for shape in ((2, 16, 16, 3), (3, 9, 100, 3), (2, 1, 1, 3)):
        video = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        result = measured(video)
        assert result.frames == shape[0]
        assert result["flicker.score"] is not None


def test_measuring_twice_gives_the_same_figures() -> None:
    video = panning(24)
    assert measured(video, every=8).figures == measured(video, every=8).figures


# ---- returning frames, from thumbnails ----


def twice(thumbnails: np.ndarray) -> np.ndarray:
    return np.concatenate([thumbnails, thumbnails]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("frames", [500, 1024, 1500, 6000])
def test_a_video_shown_twice_returns_in_half_of_its_frames_however_long_it_is(frames: int) -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(frames, NUMBERS)), axis=0)
    walk = (walk - walk.min()) / (walk.max() - walk.min()) * 255
    assert _returning(twice(walk), fps=24.0) == pytest.approx(frames / (2 * frames - 24) * 100, abs=2)


@pytest.mark.parametrize("level", [60, 200, 240])
def test_returning_frames_of_calm_bright_videos_are_found(level: int) -> None:
    # five numbers of a thumbnail rise by one level from frame to frame
    calm = np.full((200, NUMBERS), level)
    for frame in range(200):
        calm[frame, : 5 * frame] += 1
    assert _returning(twice(calm), fps=24.0) == pytest.approx(200 / 376 * 100, abs=1)
    assert _returning(calm.astype(np.uint8), fps=24.0) == 0


@pytest.mark.parametrize("fps", [0.5, 1.0, 24.0])
def test_adjacent_frames_are_no_returns_at_any_rate(fps: float) -> None:
    drift = np.repeat(3 * np.arange(60)[:, None], NUMBERS, axis=1).astype(np.uint8)
    assert _returning(drift, fps=fps) == 0
