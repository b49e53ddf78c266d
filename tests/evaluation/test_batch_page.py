"""The report of batches, in a real browser: the table, the plots, and the pairs with their contact sheets."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles.browser import Page, browser_page, find_browser
from oracles.synthetic import panning, save, truncate

from vinfinity.evaluation.api import compare_groups
from vinfinity.evaluation.batch_page import write_batch_page
from vinfinity.evaluation.groups import find_groups

BROWSER = find_browser()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
PAIRS = 7


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two batches, of which the second moves faster by one pixel per frame; and a third, equal to the first.

    Of one more pair, a video is truncated.
    """
    from oracles.runs import exit_code

    folder = tmp_path_factory.mktemp("report")
    for number in range(PAIRS):
        name = "<i>0 & co #?.mp4" if number == 0 else f"{number}.mp4"
        for batch, speed in (("slow", 1), ("fast", 2)):
            # the differences grow with the number of the pair
            speed_of_pair = speed * (1 + number / 20)
            frames = panning(12, height=48, width=64, seed=number, speed=speed_of_pair)
            save(folder / batch / name, frames)
    for batch in ("slow", "fast"):
        save(folder / batch / "35 cut.mp4", panning(12, height=48, width=64))
    shutil.copytree(folder / "slow", folder / "same")
    truncate(folder / "fast" / "35 cut.mp4")
    page = folder / "page.html"
    batches = [str(folder / batch) for batch in ("slow", "fast", "same")]
    assert exit_code("compare", *batches, "--report", str(page)) == 4
    return page


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of 30 pairs with room for about half of the contact sheets."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(30):
        for batch, speed in (("a", 1.0), ("b", 1 + number / 10)):
            frames = panning(3, height=48, width=64, seed=number, speed=speed)
            save(folder / batch / f"{number:02}.mp4", frames)
    comparison, measured = compare_groups(
        find_groups([folder / "a", folder / "b"]), reported=True, shown=False
    )
    size = sum(map(len, measured.sheets))
    write_batch_page(folder / "page.html", comparison, measured.sheets, most=size // 2)
    return folder / "page.html"


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
    return browser


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")


def motion(page: Page, expression: str) -> Any:
    """Return an expression in which `plot` is the plot of motion."""
    return page.run(
        "(() => { const plot = [...document.querySelectorAll('.dots')].find("
        "e => e.querySelector('h3').textContent.startsWith('motion,')); return " + expression + "; })()"
    )


def test_the_page_names_nothing_on_the_network(report: Path) -> None:
    text = report.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text
    assert "<!-- " not in text


@needs_browser
def test_it_opens_without_errors_and_without_network(page: Page, report: Path) -> None:
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report.resolve().as_uri()]
    assert page.run("document.title") == f"{PAIRS} of {PAIRS + 1} pairs of videos"
    [line] = texts(page, "#damaged li")
    assert re.search(r"^left out: 35 cut\.mp4: .*fast/35 cut\.mp4: ends after \d+ of 12 frames$", line)
    assert page.run("document.getElementById('about').textContent") == "slow · fast · same"


@needs_browser
def test_the_table_has_the_paired_test_and_marks_what_stands_out(page: Page) -> None:
    [row] = [text for text in texts(page, "#tests tbody tr") if text.startswith("motionMean")]
    # all 7 differences are positive: 2 of 128 choices of signs are as extreme
    assert row.endswith(f"{2 / 128:.4f}")
    assert re.search(r"1\.1\d px/frame2\.3\d px/frame1\.1\d1\.\d\d to 1\.\d\d", row)
    bold = page.run(
        "[...document.querySelectorAll('#tests .significant td:first-child button')].map(e => e.textContent)"
    )
    assert "motion" in bold
    assert "cuts" not in bold


@needs_browser
def test_another_batch_can_be_chosen(page: Page) -> None:
    page.run("document.getElementById('group').value = '2'")
    page.run("document.getElementById('group').dispatchEvent(new Event('change'))")
    assert page.run("document.querySelectorAll('#tests .significant').length") == 0
    assert page.run("document.querySelectorAll('.dots').length") == 0
    assert "motion" in page.run("document.getElementById('equal').textContent")
    assert "same" in texts(page, "#tests th")
    assert texts(page, "#pairs figcaption")[:2] == ["slow", "same"]
    assert page.errors == []


@needs_browser
def test_a_dot_for_each_pair_and_a_click_chooses_one_in_all_plots(page: Page) -> None:
    assert motion(page, "plot.querySelectorAll('.dot').length") == PAIRS
    assert motion(page, "plot.querySelectorAll('.interval').length") == 1
    # the largest difference is that of the last pair
    page.run("document.querySelectorAll('.dots')[0].scrollIntoView({block: 'center'})")
    at = motion(
        page,
        "(() => { const r = plot.querySelector('svg').getBoundingClientRect(); const d = [...plot.querySelectorAll("
        "'.dot')].reduce((a, b) => (+b.getAttribute('cx') > +a.getAttribute('cx') ? b : a)); "
        "return [r.left + +d.getAttribute('cx'), r.top + +d.getAttribute('cy')]; })()",
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)
    assert page.run("pairs[chosen].name") == f"{PAIRS - 1}.mp4"
    plots = page.run("document.querySelectorAll('.dots').length")
    assert page.run("document.querySelectorAll('.dots .dot.now').length") >= plots - 2
    assert page.run("document.querySelector('#pairs li.now button').textContent") == f"{PAIRS - 1}.mp4"


@needs_browser
def test_keys_go_through_the_pairs_of_a_plot_and_show_one(page: Page) -> None:
    motion(page, "plot.querySelector('svg').focus()")
    page.press("Home")
    first = page.run("pairs[chosen].name")
    page.press("ArrowRight")
    assert page.run("pairs[chosen].name") != first
    page.press("End")
    assert page.run("pairs[chosen].name") == f"{PAIRS - 1}.mp4"
    assert f"{PAIRS - 1}.mp4: +1." in motion(page, "plot.querySelector('svg').getAttribute('aria-valuetext')")
    page.press("Enter")
    assert page.run("document.activeElement.textContent") == f"{PAIRS - 1}.mp4"
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"


@needs_browser
def test_pairs_have_contact_sheets_links_and_values_and_are_sorted(page: Page, report: Path) -> None:
    names = texts(page, "#pairs li p button")
    assert names[0] == f"{PAIRS - 1}.mp4"
    assert sorted(names) == sorted(["<i>0 & co #?.mp4", *(f"{number}.mp4" for number in range(1, PAIRS))])
    page.wait("[...document.querySelectorAll('#pairs img')].slice(0, 2).every(image => image.complete)")
    # four by two frames of 64x48
    sizes = page.run(
        "[...document.querySelectorAll('#pairs img')].slice(0, 2).map(e => [e.naturalWidth, e.naturalHeight])"
    )
    assert sizes == [[256, 96]] * 2
    page.run("sortBy('')")
    names = texts(page, "#pairs li p button")
    assert names == sorted(names)
    assert page.run("document.getElementById('order').disabled") is True
    from urllib.parse import unquote

    links = page.run("[...document.querySelectorAll('#pairs a')].map(e => new URL(e.href).pathname)")
    assert {Path(unquote(link)) for link in links} == {
        path for batch in ("slow", "fast") for path in (report.parent / batch).glob("*[!t].mp4")
    }
    assert re.match(
        r"motion 1\.\d\d px/frame → 2\.\d\d px/frame \(\+1\.\d\d\)", texts(page, "#pairs .hint")[0]
    )


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (400, True), (1280, True)])
def test_it_fits_narrow_windows_and_dark_mode(page: Page, report: Path, width: int, dark: bool) -> None:
    page.size(width, dark=dark)
    page.open(report)
    assert page.fits(width, dark=dark)
    assert page.errors == []


def test_a_page_of_many_pairs_is_bounded_and_keeps_the_sheets_of_remarkable_ones(many: Path) -> None:
    text = many.read_text(encoding="utf-8")
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    shown = [pair["name"] for pair in data["pairs"] if pair["sheets"]]
    assert 8 < len(shown) < 16
    # those whose motion differs the most
    assert {"27.mp4", "28.mp4", "29.mp4"} <= {*shown}
    assert len(data["pairs"]) == 30


@needs_browser
def test_many_pairs_are_shown_part_by_part(browser: Page, many: Path) -> None:
    browser.errors.clear()
    browser.open(many)
    assert "have no contact sheets here" in browser.run("document.getElementById('left-out').textContent")
    assert browser.run("document.querySelectorAll('#pairs li').length") == 24
    browser.click("#more")
    assert browser.run("document.querySelectorAll('#pairs li').length") == 30
    assert browser.run("document.getElementById('more').offsetHeight") == 0
    # with two batches there is no other to choose
    assert browser.run("document.getElementById('chooser').offsetHeight") == 0
    assert browser.run("document.activeElement.closest('li') !== null") is True
    # Enter in a plot shows a pair that is not listed yet
    browser.run("sortBy('')")
    browser.run("choose(29)")
    browser.run("reveal(29)")
    assert browser.run("document.activeElement.textContent") == "29.mp4"
    assert browser.errors == []


@needs_browser
def test_every_control_has_a_name_and_can_be_reached_by_key(page: Page) -> None:
    assert page.unnamed_controls() == []
    assert page.tab_to_slider().startswith("Differences of")
