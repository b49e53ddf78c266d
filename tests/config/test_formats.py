"""Which format a name and the settings ask for, and what does not go together."""

from fractions import Fraction
from typing import Any

import pytest
from oracles.settings import run_config

from vinfinity.config import VideoConfig, choose_format
from vinfinity.errors import InputError
from vinfinity.system.numbers import read_rate, shown_rate


@pytest.mark.parametrize(
    ("name", "settings", "codec", "pixel_format", "bits"),
    [
        (None, {}, "libx264", "yuv420p", 8),
        ("a.MP4", {"pixel_format": "yuv444p"}, "libx264", "yuv444p", 8),
        ("a.mp4", {"codec": "h265", "bit_depth": 10}, "libx265", "yuv420p10le", 16),
        ("a.mp4", {"codec": "av1", "bit_depth": 8}, "libsvtav1", "yuv420p", 8),
        ("a.mov", {}, "prores_ks", "yuv422p10le", 16),
        ("a.mov", {"pixel_format": "yuv422p", "bit_depth": 10}, "prores_ks", "yuv422p10le", 16),
        ("a.webm", {}, "libvpx-vp9", "yuv420p", 8),
        ("a.gif", {}, "gif", "pal8", 8),
        ("a.webp", {"quality": 50}, "libwebp_anim", "bgra", 8),
        ("a.mp4/", {"bit_depth": 16}, "png", "rgb48be", 16),
    ],
)
def test_the_ending_chooses(
    name: str | None, settings: dict[str, Any], codec: str, pixel_format: str, bits: int
) -> None:
    video = choose_format(name, VideoConfig(**settings))
    assert (video.codec.encoder, video.pixel_format, video.sample_bits) == (codec, pixel_format, bits)


def test_quality_and_speed_reach_the_encoder() -> None:
    for codec, crf, preset in (
        ("h264", "18", ("preset", "medium")),
        ("h265", "20", ("preset", "medium")),
        ("av1", "24", ("preset", "8")),
    ):
        options = choose_format("a.mp4", VideoConfig(codec=codec)).options  # type: ignore[arg-type]
        assert options["crf"] == crf
        assert options[preset[0]] == preset[1]
    faster = choose_format("a.webm", VideoConfig(crf=40, preset="ultrafast")).options
    assert (faster["crf"], faster["cpu-used"]) == ("40", "5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"out": "a.gif", "video.crf": 20}, r"video\.crf: 20 .* has no effect on GIF; remove it"),
        ({"out": "a.gif", "video.preset": "slow"}, r"has no effect on GIF; .*video\.preset=null"),
        ({"out": "a.webp", "video.pixel_format": "yuv420p"}, "has no effect on WebP"),
        ({"out": "a/", "video.crf": 20}, "has no effect on a folder of PNG"),
        ({"out": "a.mov", "video.crf": 20}, "has no effect on ProRes 422 HQ"),
        ({"out": "a.gif", "video.codec": "h264"}, "has no effect on GIF"),
        ({"out": "a/", "video.codec": "h264"}, "has no effect on a folder of PNG"),
        ({"video.quality": 50}, "has no effect on H.264"),
        ({"video.repeat": False}, "has no effect on H.264"),
        ({"video.codec": "prores"}, r"choose from h264, h265, av1, or rename the file to \.mov"),
        (
            {"out": "a.webm", "video.codec": "h264"},
            r"choose from vp9, av1, or rename the file to \.mp4 or \.mov",
        ),
        ({"video.bit_depth": 10}, r"H\.264 takes 8; or use video\.codec=h265"),
        ({"out": "a.mov", "video.bit_depth": 8}, r"ProRes 422 HQ takes 10; or use video\.codec=h264"),
        ({"out": "a.mp4", "video.bit_depth": 16, "video.codec": "h265"}, r"H\.265 takes 8 or 10$"),
        ({"out": "a/", "video.bit_depth": 10}, "PNG takes 8 or 16$"),
        ({"video.codec": "av1", "video.pixel_format": "yuv444p"}, "AV1 takes yuv420p$"),
        ({"video.codec": "av1", "video.crf": 0}, "AV1 takes 1 to 63; 24 is the default"),
        (
            {"out": "a.gif", "fps": 60},
            "fps: 60 .* more than the 50 frames per second that browsers show of a GIF",
        ),
        ({"out": "a.webp", "audio": "a.wav"}, r"WebP holds no audio; |use \.mp4, \.mov, \.webm"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_config(prompt="a ball", **settings)


@pytest.mark.parametrize(
    ("given", "rate", "shown"),
    [
        (24, Fraction(24), "24"),
        (24.0, Fraction(24), "24"),
        ("12.5", Fraction(25, 2), "12.5"),
        ("23.976", Fraction(24000, 1001), "23.976"),
        (23.98, Fraction(24000, 1001), "23.976"),
        ("29.97", Fraction(30000, 1001), "29.97"),
        ("59.94", Fraction(60000, 1001), "59.94"),
        ("30000/1001", Fraction(30000, 1001), "29.97"),
        ("24.5", Fraction(49, 2), "24.5"),
    ],
)
def test_rates_are_exact(given: object, rate: Fraction, shown: str) -> None:
    assert read_rate(given) == rate
    assert shown_rate(rate) == shown
    assert run_config(fps=given).fps == rate


def test_what_is_no_rate() -> None:
    for given in ("film", "24/0", "0/5", "1/2/3", " 24", "", True, None, float("nan"), [24]):
        assert read_rate(given) is None
