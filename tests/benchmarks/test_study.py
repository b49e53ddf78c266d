"""The tables and the plot of the study of long videos, from lines with known differences."""

from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from scripts.figures import study, study_plot

SVG = "{http://www.w3.org/2000/svg}"


def rows(
    scenes: int,
    seeds: int = 2,
    frames: int = 96,
    steps: int = 25,
    weights: str = "0123abcd",
    **shifts: float,
) -> list[dict[str, str]]:
    """Lines of `dual`, and of settings whose agreement with the prompt is higher by a shift."""
    noise = np.random.default_rng(0).normal(size=(scenes, seeds))
    return [
        {
            **{"setting": setting, "frames": str(frames), "scene": str(scene), "seed": str(seed)},
            **{
                "steps": str(steps),
                "guidance": "1.4",
                "weights": weights,
                "processor": "AMD EPYC with AVX2",
                "seconds": "36",
                "seams.ratio": "",
            },
            "read.right": str(0.5 + 0.1 * noise[scene, seed] + shift * (1 + 0.1 * noise[scene, seed - 1])),
            "motion.length": "1.5",
        }
        for scene in range(scenes)
        for seed in range(seeds)
        for setting, shift in {"dual": 0.0, **shifts}.items()
    ]


def only(lines: list[dict[str, str]]) -> study.Group:
    [group] = study.groups(lines)
    return group


def test_a_scene_counts_once_however_many_seeds_it_has() -> None:
    group = only(rows(8, local=0.2))
    assert group.count("local") == 16
    test = group.difference("local", "read.right")
    assert test is not None
    assert test.pairs == 8
    assert test.low < 0.2 < test.high
    mean = group.mean("local", "read.right")
    assert mean is not None
    assert mean.interval is not None
    assert mean.interval[0] < mean.value < mean.interval[1]


def test_pairs_are_the_scenes_and_seeds_that_both_settings_have() -> None:
    """A setting that has only the hard scenes so far is compared in these alone."""
    lines = [row for row in rows(8, local=0.2) if row["setting"] == "dual" or int(row["scene"]) >= 5]
    group = only(lines)
    test = group.difference("local", "read.right")
    assert test is not None
    assert test.pairs == 3
    assert 0.15 < test.mean < 0.25
    assert group.difference("local", "seams.ratio") is None
    assert group.mean("local", "seams.ratio") is None


def test_other_lengths_steps_and_weights_are_never_mixed() -> None:
    lines = rows(2, frames=320, local=0.1) + rows(2, local=0.1) + rows(2, steps=12, local=0.1)
    lines += rows(2, weights="ffffffff", local=0.1)
    assert [(group.frames, group.steps, len(group.rows)) for group in study.groups(lines)] == [
        (96, 12, 8),
        (96, 25, 8),
        (96, 25, 8),
        (320, 25, 8),
    ]


def test_holm_is_the_step_down_correction() -> None:
    assert study.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert study.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert study.holm([]) == []


def test_differences_that_hold_are_bold_and_chance_is_not() -> None:
    text = study.summary(rows(12, local=0.2, moving=0.0))
    [local] = [line for line in text.splitlines() if line.startswith("| `local` | 12 |")]
    [moving] = [line for line in text.splitlines() if line.startswith("| `moving` | 12 |")]
    assert "| **+0." in local
    assert "**" not in moving
    assert "+0.000 (+0.000 to +0.000)" in moving


def test_the_tables_say_how_many_videos_there_are_and_what_is_missing() -> None:
    lines = rows(12, local=0.2)
    text = study.summary(lines[:-1])
    assert "96 frames and 25 steps have 23 to 24 of 48 videos a setting" in text
    assert "no video of 320 frames was made; no video of 960 frames was made" in text
    assert "| `local` | 23 | 36 |" in text
    assert "47 videos of 12 prompts with 2 settings; 0.5 hours of one core of AMD EPYC with AVX2." in text
    complete = [row for frames in study.LENGTHS for row in rows(24, frames=frames, local=0.1)]
    assert "not complete" not in study.summary(complete)


def test_times_are_those_on_the_processor_that_made_most_videos() -> None:
    lines = rows(12, local=0.2, dense=0.1)
    for line in lines:
        if line["setting"] == "dense" or (line["setting"], line["seed"]) == ("local", "1"):
            line.update({"processor": "Xeon with AMX", "seconds": "7"})
    text = study.summary(lines)
    hours = "0.4 hours of one core of AMD EPYC with AVX2 and 0.1 hours of one core of Xeon with AMX."
    assert hours in text
    assert "Seconds are those on AMD EPYC with AVX2." in text
    assert "| `local` | 24 | 36 |" in text
    assert "| `dense` | 24 | - |" in text
    assert "Seconds are those on" not in study.summary(rows(12, local=0.2))


def test_few_scenes_are_said_to_say_nothing() -> None:
    text = study.summary(rows(1, seeds=1, local=0.2))
    assert "2 videos of 1 prompt with 2 settings" in text
    assert "without intervals" in text
    assert "read nothing into differences" in text
    assert "| `local` | 1 | 36 | 0.7" in text
    assert "Differences from" not in text
    assert study.summary([]).count("was made") == 3


def test_the_plot_has_a_panel_for_each_figure_and_marks_what_holds() -> None:
    group = only(rows(12, local=0.2, moving=-0.2, dense=0.0))
    assert group.plotted
    root = ElementTree.fromstring(study_plot.plot(group))
    boxes = root.findall(f"{SVG}rect[@class='box']")
    assert len(boxes) == len(study.SHOWN)
    colours = [circle.get("class") for circle in root.findall(f"{SVG}circle")]
    assert colours.count("green") == 1
    assert colours.count("red") == 1
    assert set(colours) == {"green", "red", "arrow"}
    assert not only(rows(3, local=0.2)).plotted


def test_outliers_get_an_arrow_instead_of_all_the_room() -> None:
    group = only(rows(12, local=0.2, moving=0.1, dense=9.0))
    root = ElementTree.fromstring(study_plot.plot(group))
    heads = root.findall(f"{SVG}polygon")
    assert [head.get("class") for head in heads] == ["green"]


def test_further_schedules_are_compared_with_no_biases_in_the_scenes_and_seeds_that_they_have() -> None:
    further = [row for row in rows(8, late=0.1) if row["setting"] == "late" and row["seed"] == "0"]
    # other seeds, lengths and settings of the study do not count
    lines = rows(8, unbiased=0.2, moving=0.4) + rows(8, frames=320, unbiased=0.9)
    for row in [*further, *lines]:
        row["read.steady"] = row["read.right"] if row["seed"] == "0" else "0"
    table = study.schedules(further, lines).splitlines()
    assert table[0] == "| setting | steady frames ↑ | less those without biases | as the prompt says ↑ |"
    assert [line.split("`")[1] for line in table[2:]] == ["dual", "late", "unbiased"]
    means = [float(line.split(" | ")[1]) for line in table[2:]]
    for line, mean in zip(table[2:-1], means[:-1], strict=True):
        assert float(line.split(" | ")[2].split()[0]) == pytest.approx(mean - means[-1], abs=0.0011)
    assert " | - | " in table[-1]


@pytest.mark.parametrize(
    "change",
    [lambda text: text.replace("<!-- study: end -->", ""), lambda text: text.replace("schedules", "")],
)
def test_a_page_without_its_markers_is_an_error(change: Callable[[str], str]) -> None:
    begin, end = "<!-- schedules: begin -->", "<!-- schedules: end -->"
    text = f"before\n<!-- study: begin -->\nold\n<!-- study: end -->\nbetween\n{begin}\n{end}\nafter"
    lines = rows(2, unbiased=0.1)
    page = study.page(text, lines, lines)
    assert page.startswith("before\n<!-- study: begin -->\n\n**The study is not complete**")
    assert f"\n\n<!-- study: end -->\nbetween\n{begin}\n\n| setting |" in page
    assert page.endswith(f" |\n\n{end}\nafter")
    assert study.page(page, lines, lines) == page
    with pytest.raises(ValueError, match="lacks"):
        study.page(change(text), lines, lines)
