"""The report, in a real browser: it needs no network, plays, and seeks by click and by key."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles.browser import Page, browser_page, find_browser
from oracles.command_line import Cli
from oracles.synthetic import panning, save
from oracles.video import times_of_frames

from vinfinity.evaluation.page import script_json

BROWSER = find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
FRAMES = 48


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, of which the second freezes and is shorter, with a border at frame 24."""
    from oracles.runs import exit_code

    folder = tmp_path_factory.mktemp("report")
    one = save(folder / "one.mp4", panning(FRAMES, speed=2), fps=12)
    still = panning(36, speed=2)
    still[20:34] = still[20]
    two = save(folder / "<b>two & co #1?.mp4", still, fps=12)
    page = folder / "page.html"
    assert exit_code("compare", str(one), str(two), "--border", "24", "--report", str(page)) == 0
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    assert BROWSER is not None
    with browser_page(BROWSER) as page:
        yield page


@pytest.fixture
def page(browser: Page, report: Path) -> Page:
    browser.errors.clear()
    browser.requests.clear()
    browser.size(1280)
    browser.open(report)
    browser.wait("players.every(player => player.readyState >= 2)")
    return browser


def times(page: Page) -> list[float]:
    """Where both videos are, once they have arrived there."""
    page.wait("players.every(player => !player.seeking)")
    return page.run("players.map(player => player.currentTime)")


def at(frame: int) -> Any:
    """Return the middle of a frame, in seconds."""
    return pytest.approx((frame + 0.5) / 12, abs=0.01)


def test_texts_cannot_end_the_script_they_stand_in() -> None:
    text = "</script><script>alert(1)</script><!-- videos -->"
    assert "<" not in script_json({"prompt": text})
    assert json.loads(script_json({"prompt": text})) == {"prompt": text}
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_the_page_names_nothing_on_the_network(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "http://www.w3.org/2000/svg" in text
    assert text.replace("http://www.w3.org/2000/svg", "").count("http") == 0
    assert "<!-- " not in text


@needs_browser
def test_it_opens_without_errors_and_without_network(page: Page, report: Path) -> None:
    assert page.errors == []
    schemes = {url.partition(":")[0] for url in page.requests}
    assert schemes <= {"file", "blob", "data"}
    assert [url for url in page.requests if url.startswith("file:")] == [report.resolve().as_uri()]


@needs_browser
def test_names_of_files_are_text_and_their_links_lead_to_them(page: Page, report: Path) -> None:
    captions = page.run("[...document.querySelectorAll('#players figcaption')].map(e => e.textContent)")
    assert captions[1].startswith("<b>two & co #1?.mp4 · 36 frames of 160x96")
    links = page.run(
        "[...document.querySelectorAll('#players figcaption a')].map(e => new URL(e.href).pathname)"
    )
    from urllib.parse import unquote

    assert [Path(unquote(link)) for link in links] == [
        report.parent / "one.mp4",
        report.parent / "<b>two & co #1?.mp4",
    ]


@needs_browser
def test_names_that_are_not_utf8_are_shown_and_linked(browser: Page, cli: Cli, tmp_path: Path) -> None:
    video = tmp_path / os.fsdecode(b"x_\xff.mp4")
    save(tmp_path / "x.mp4", panning(4, height=16, width=16)).rename(video)
    limit = ("--limit", "flicker.score<=0")
    code, out, err = cli("evaluate", str(video), *limit, "--report", str(tmp_path / "page.html"))
    assert code == 7, err
    assert "x_\\udcff.mp4: flicker" in out
    browser.errors.clear()
    browser.open(tmp_path / "page.html")
    browser.wait("players.every(player => player.readyState >= 2)")
    assert browser.errors == []
    assert browser.run("document.title") == "x_\\udcff.mp4"
    link = browser.run("new URL(document.querySelector('#players figcaption a').href).pathname")
    assert os.fsencode(link).endswith(b"/x_%FF.mp4")


@needs_browser
def test_play_moves_both_videos_in_step_and_stops_at_the_end(page: Page) -> None:
    page.click("#play")
    page.wait("frame > 6")
    one, two = page.run("players.map(player => player.currentTime)")
    assert abs(one - two) < 3 / 12
    page.run("seek(40)")
    page.wait(f"!playing && frame === {FRAMES - 1}")
    assert page.run("document.getElementById('play').getAttribute('aria-label')") == "Play"
    assert page.errors == []


@needs_browser
def test_a_shorter_video_plays_on_after_a_seek_from_beyond_its_end(page: Page) -> None:
    page.run("seek(34)")
    page.click("#play")
    page.wait("players[1].ended && players[1].paused")
    page.press("Home")
    page.wait("playing && frame > 2 && frame < 30")
    assert page.run("players.every(player => !player.paused)")
    page.click("#play")
    assert page.run("players.every(player => player.paused)")
    assert page.errors == []


@needs_browser
def test_keys_play_and_seek(page: Page) -> None:
    page.press("ArrowRight")
    assert page.run("frame") == 1
    page.press("ArrowRight", shift=True)
    assert page.run("frame") == 13
    assert times(page) == [at(13), at(13)]
    page.press("ArrowLeft")
    assert page.run("frame") == 12
    page.press("End")
    assert page.run("frame") == FRAMES - 1
    # the shorter video stays at its last frame
    assert times(page) == [at(FRAMES - 1), at(35)]
    page.press("Home")
    page.press(" ")
    page.wait("playing && frame > 2")
    page.press(" ")
    assert page.run("playing") is False
    page.run("document.querySelector('.chart svg').focus()")
    page.press("Home")
    page.press("ArrowRight")
    assert page.run("frame") == 1


@needs_browser
def test_a_click_on_a_curve_seeks_the_videos(page: Page) -> None:
    left, width = 44, page.run("document.querySelector('.chart svg').clientWidth")
    share = (left + 30 / (FRAMES - 1) * (width - left - 4)) / width
    page.click(".chart svg", along=share)
    assert page.run("frame") == 30
    assert times(page) == [at(30), at(30)]


@needs_browser
def test_clicks_on_thumbnails_borders_and_matrices_seek(page: Page) -> None:
    page.click(".sheet button:nth-child(3)")
    assert page.run("frame") == 5 * FRAMES // 32
    page.click("#seams tbody button")
    assert page.run("frame") == 24
    page.click(".matrix", along=0.25)
    assert abs(page.run("frame") - (FRAMES - 1) / 4) <= 1


@needs_browser
def test_what_the_decoder_shows_is_the_frame_that_was_asked_for(page: Page) -> None:
    """The camera moves by 2 pixels a frame: the preview at frame 30 is nearest to the video's own frame 30."""
    page.run("seek(30)")
    times(page)
    pixels = page.run(
        "(() => { const c = document.createElement('canvas'); c.width = 160; c.height = 96; "
        "const x = c.getContext('2d');"
        "x.drawImage(players[0], 0, 0, 160, 96); return [...x.getImageData(0, 0, 160, 96).data]; })()"
    )
    shown = np.array(pixels).reshape(96, 160, 4)[..., :3]
    errors = np.abs(panning(FRAMES, speed=2).astype(float) - shown).mean(axis=(1, 2, 3))
    assert int(errors.argmin()) == 30


@needs_browser
def test_curves_borders_tables_and_matrices_are_drawn(page: Page) -> None:
    assert page.run("document.querySelectorAll('.chart').length") == 8
    assert page.run("document.querySelectorAll('.chart .curve').length") == 16
    assert page.run("document.querySelectorAll('.chart .given').length") == 16
    # the second video is frozen for a while
    assert page.run("document.querySelectorAll('.chart .frozen').length") == 8
    assert page.run("document.querySelectorAll('.matrix canvas').length") == 2
    assert page.run("document.querySelectorAll('.sheet button').length") == 32
    notes = page.run("document.getElementById('notes').textContent")
    assert "frozen from frame 20 to 33" in notes
    rows = page.run(
        "[...document.querySelectorAll('#figures tbody tr')].map(e => e.firstChild.firstChild.textContent)"
    )
    assert rows[0] == "motion"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1280, True)])
def test_it_fits_narrow_windows_and_dark_mode(page: Page, report: Path, width: int, dark: bool) -> None:
    page.size(width, dark=dark)
    page.open(report)
    assert page.fits(width, dark=dark)
    assert page.errors == []


@needs_browser
def test_long_prompts_fit_narrow_windows(browser: Page, model_folder: Path, tmp_path: Path) -> None:
    from oracles.runs import exit_code

    texts = (
        "a blue ball bouncing over white snow",
        "--then",
        "50%",
        "a yellow star circling in the starry night",
    )
    settings = ("--frames", "12", "--size", "32x32", "--device", "cpu", "steps=2")
    out, report = tmp_path / "story.mp4", tmp_path / "story.html"
    given = ("--model", str(model_folder), "--out", str(out))
    assert exit_code("generate", "-p", *texts, *given, *settings) == 0
    assert exit_code("evaluate", str(out), "--report", str(report)) == 0
    browser.size(400)
    browser.open(report)
    browser.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.fits(400, dark=False)


@needs_browser
def test_every_control_has_a_name_and_can_be_reached_by_key(page: Page) -> None:
    assert page.unnamed_controls() == []
    assert page.tab_to_slider().startswith("difference of adjacent frames")


def test_screen_readers_do_not_speak_the_clock_at_every_frame(report: Path) -> None:
    """An output element is a live region otherwise."""
    [clock] = re.findall(r"<output[^>]*>", report.read_text(encoding="utf-8"))
    assert 'aria-live="off"' in clock


@needs_browser
def test_previews_have_the_times_of_the_video(page: Page, tmp_path: Path) -> None:
    assert page.run("players.map(player => player.duration)") == pytest.approx([4.0, 3.0], abs=0.01)


@needs_browser
def test_a_large_video_of_an_odd_size_and_rate_is_shown(browser: Page, cli: Cli, tmp_path: Path) -> None:
    video = save(tmp_path / "odd.mp4", panning(5, height=351, width=701), fps=30)
    assert len(times_of_frames(video)) == 5
    code, _, err = cli("evaluate", str(video), "--report", str(tmp_path / "odd.html"))
    assert code == 0, err
    browser.open(tmp_path / "odd.html")
    browser.wait("players[0].readyState >= 2")
    assert browser.run("[players[0].videoWidth, players[0].videoHeight]") == [640, 320]
