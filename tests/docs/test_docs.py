"""The documentation: links and images exist, the README stays short, figures and tables are up to date."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image, ImageSequence

import vinfinity

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
IMAGES = sorted((ROOT / "docs" / "images").iterdir())


def prose(page: Path) -> str:
    """Return the text of a page without its code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(page: Path) -> set[str]:
    """Return the fragments that the headings of a page make."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_images_of_a_page_exist(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, fragment = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_readme_has_at_most_120_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_readme_shows_a_looping_animation_under_2_mb() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    (animation,) = [ROOT / name for name in shown if name.endswith((".webp", ".gif"))]
    assert animation.stat().st_size < 2_000_000
    with Image.open(animation) as image:
        assert sum(1 for _ in ImageSequence.Iterator(image)) >= 32
        assert image.info["loop"] == 0


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == vinfinity.__version__


def test_every_image_is_shown_on_a_page() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    texts += (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [image.name for image in IMAGES if f"images/{image.name}" not in texts] == []


def test_drawn_figures_and_the_reading_order_are_up_to_date() -> None:
    command = [sys.executable, "-m", "scripts.figures", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "image", [image for image in IMAGES if image.suffix == ".svg"], ids=lambda image: image.name
)
def test_figures_are_well_formed_and_name_what_they_show(image: Path) -> None:
    root = ElementTree.parse(image).getroot()
    titles = root.findall("{http://www.w3.org/2000/svg}title")
    assert titles
    assert titles[0].text


def test_every_page_is_in_the_site_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents]
    assert [
        page
        for page in pages
        if not re.search(rf": {re.escape(page)}$|- {re.escape(page)}$", navigation, re.MULTILINE)
    ] == []


def test_the_site_needs_no_network() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "\n  font: false" in settings
    assert "strict: true" in settings
    assert "http" not in settings


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "log").glob("2*.md")), ids=lambda page: page.stem)
def test_every_experiment_of_the_log_has_a_result(page: Path) -> None:
    entries = re.split(r"^### ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert entries
    assert [
        entry.partition("\n")[0]
        for entry in entries
        if "**Result.**" not in entry and "**Consequence.**" not in entry
    ] == []
