"""Rows and seeds as videos with names; parts; what is refused before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vinfinity.batch.plan import Batch, parse_part, parse_seeds, plan_batch
from vinfinity.batch.rows import python_rows
from vinfinity.config import load
from vinfinity.errors import InputError
from vinfinity.weights.card import model_defaults


def planned(
    folder: Path,
    rows: list[str | Mapping[str, Any]],
    *,
    seeds: range | None = None,
    part: str | None = None,
    **given: Any,
) -> Batch:
    return plan_batch(
        python_rows(rows),
        lambda row: load(None, settings={"frames": 3, **given}, row=row, card=model_defaults),
        name="rows",
        folder=folder,
        seeds=seeds,
        part=part,
    )


def names(*arguments: Any, **given: Any) -> list[str]:
    return [item.name for item in planned(*arguments, **given).items]


def refusal(*arguments: Any, **given: Any) -> str:
    with pytest.raises(InputError) as raised:
        planned(*arguments, **given)
    assert raised.value.exit_code == 2
    return raised.value.message


def test_videos_are_named_after_row_prompt_and_seed(tmp_path: Path) -> None:
    rows = ["A red ball!", {"prompt": "Ein blaues Boot", "seed": 7}]
    assert names(tmp_path, rows) == ["0001-a-red-ball-0.mp4", "0002-ein-blaues-boot-7.mp4"]


def test_seeds_multiply_rows(tmp_path: Path) -> None:
    batch = planned(tmp_path, ["x", "y"], seeds=range(3, 5))
    assert [item.name for item in batch.items] == [
        "0001-x-3.mp4",
        "0001-x-4.mp4",
        "0002-y-3.mp4",
        "0002-y-4.mp4",
    ]
    assert [item.config.seed for item in batch.items] == [3, 4, 3, 4]


def test_vbench_s_names_can_be_given(tmp_path: Path) -> None:
    """VBench looks for `{prompt}-{index}.mp4`, where its index counts the videos of a prompt from 0."""
    rows = ["In a still frame, a stop sign", "a tram", "In a still frame, a stop sign"]
    assert names(tmp_path, rows, seeds=range(2), out="{prompt}-{sample}.mp4")[::2] == [
        "In a still frame, a stop sign-0.mp4",
        "a tram-0.mp4",
        "In a still frame, a stop sign-2.mp4",
    ]


def test_templates_may_name_settings_and_folders(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "attention.local": 3}, {"prompt": "x", "out": "own-{{{seed}}}.mp4"}]
    out = "{model}/{attention.local:02}-{size}.mp4"
    assert names(tmp_path, rows, out=out) == ["mini/03-256x160.mp4", "own-{0}.mp4"]


def test_latents_are_named_by_a_template_too(tmp_path: Path) -> None:
    batch = planned(tmp_path, ["x", "y"], save_latents="latents/{slug}.safetensors")
    assert [item.destination.latents for item in batch.items] == [
        tmp_path / "latents" / f"{name}.safetensors" for name in "xy"
    ]


def test_a_row_s_own_settings_come_before_those_of_all_rows(tmp_path: Path) -> None:
    batch = planned(tmp_path, [{"prompt": "x", "steps": 3}, "y", {"seed": 1}], steps=5, prompt="for all")
    assert [(item.config.prompt, item.config.steps) for item in batch.items] == [
        ("x", 3),
        ("y", 5),
        ("for all", 5),
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_parts_partition_the_videos_exactly(n: int, tmp_path: Path) -> None:
    rows: list[str | Mapping[str, Any]] = ["x", "y", "z"]
    whole = names(tmp_path, rows, seeds=range(2))
    parts = [planned(tmp_path, rows, seeds=range(2), part=f"{k}/{n}") for k in range(1, n + 1)]
    assert sorted(item.name for part in parts for item in part.items) == sorted(whole)
    assert max(len(part.items) for part in parts) - min(len(part.items) for part in parts) <= 1
    assert len({part.name for part in parts}) == n
    assert all(part.total == 6 for part in parts)


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        (["x", "x"], {"out": "{slug}.mp4"}, "out: x.mp4 (rows, row 2) is also the name for rows, row 1; add"),
        (["x"], {"out": "{index}.mp4", "seeds": range(2)}, "out: 1.mp4 (rows, row 1) is also the name for rows, row 1"),
        (["x"], {"out": "../{slug}.mp4"}, "out: ../x.mp4 (rows, row 1) leaves the folder of the batch"),
        (["x"], {"out": "/tmp/{slug}.mp4"}, "out: /tmp/x.mp4 (rows, row 1) leaves the folder"),
        (["x"], {"out": "~/{slug}.mp4"}, "out: ~/x.mp4 (rows, row 1) leaves the folder"),
        (["a/../b"], {"out": "{prompt}.mp4"}, "out: {prompt}.mp4 (rows, row 1) would create folders at each /"),
        (["x"], {"out": "{promt}.mp4"}, "out: {promt}.mp4 (rows, row 1) names {promt}, which a video does not have"),
        (["x"], {"out": "{}.mp4"}, "out: {}.mp4 (rows, row 1) names {0}, which a video does not have; use index"),
        (["x"], {"out": "{slug.__class__}.mp4"}, "out: {slug.__class__}.mp4 (rows, row 1) names {slug.__class__}"),
        (["x"], {"out": "{slug:04d}.mp4"}, "out: {slug:04d}.mp4 (rows, row 1) is not a valid template"),
        (["x"], {"out": "{slug.mp4"}, "out: {slug.mp4 (rows, row 1) is not a valid template"),
        (["x"], {"out": "{slug}.avi"}, "out: {slug}.avi (argument, for rows, row 1) does not end in .mp4"),
        (["x" * 300], {"out": "{prompt}.mp4"}, "out: "),
        (["x", "y"], {"save_latents": "l.safetensors"}, "save_latents: "),
        ([{"seed": 1}], {}, "prompt: none given (rows, row 1); describe the video"),
        ([{"prompt": "x", "steps": 0}], {}, "steps: 0 (rows, row 1) is not between 1 and 1000; 30"),
        ([{"prompt": "x", "steps": "4"}], {}, "steps: 4 (rows, row 1) is not a whole number"),
        (["x"], {"gpus": 4}, "gpus: 4 (argument, for rows, row 1) is more than the 3 frames"),
        ([{"prompt": "x", "seed": 1}], {"seeds": range(2)}, "seed: 1 (rows, row 1) conflicts with --seeds; remove"),
        (["x"], {"seed": 5, "seeds": range(2)}, "seed: 5 (argument, for rows, row 1) conflicts with --seeds; remove"),
        (["x", "y"], {"seeds": range(10**12)}, "seeds: 1000000000000 for each of 2 rows give more than 1000000 videos"),
        ([{"prompt": "x", "model": "minni"}], {}, "model: minni (rows, row 1) "),
    ],
)  # fmt: skip
def test_faulty_rows_are_refused(rows: list[Any], given: dict[str, Any], said: str, tmp_path: Path) -> None:
    message = refusal(tmp_path / "videos", rows, **given)
    assert message.startswith(said), message
    assert not (tmp_path / "videos").exists()


def test_faults_of_other_parts_are_found(tmp_path: Path) -> None:
    rows: list[str | Mapping[str, Any]] = ["x", {"prompt": "y", "frames": 0}]
    assert refusal(tmp_path, rows, part="1/2").startswith("frames: 0 (rows, row 2)")


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "0001-x-0.mp4").write_bytes(b"mine")
    assert "0001-x-0.mp4 (rows, row 1) already exists" in refusal(tmp_path, ["x"])
    [item] = planned(tmp_path, ["x"], overwrite=True).items
    assert item.start == "new"


@pytest.mark.parametrize("text", ["", "3", "0:", "4:4", "5:2", "-1:3", "a:b", "0:4:2", "01:2"])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--seeds: .*; write it as FROM:TO, such as 0:4"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "-1/3", "a/b", "1/2/3"])
def test_wrong_parts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--part: .*; write it as K/N"):
        parse_part(text)
    assert parse_part("3/8") == (3, 8)
