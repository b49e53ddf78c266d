"""The recipe of the embedded model: which runs share a folder, and what happens to its stages."""

from pathlib import Path

import pytest

recipe = pytest.importorskip("recipe", reason="needs diffusers and transformers", exc_type=ImportError)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the recipe refuses these arguments."""
    with pytest.raises(SystemExit) as refused:
        recipe.main(arguments)
    assert refused.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    "other",
    [
        (),
        ("--scale", "0.001", "--device", "cuda"),
        ("--scale", "0.001", "--keep", "vae"),
        ("--scale", "0.001", "--start", "shipped"),
    ],
    ids=["scale", "device", "keep", "start"],
)
def test_a_folder_holds_one_run_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: tuple[str, ...]
) -> None:
    trial = recipe.parse(["--work", str(tmp_path), "--scale", "0.001"])
    recipe.claim(trial)
    recipe.claim(trial)
    before = sorted(tmp_path.iterdir())
    line = refusal(capsys, "--work", str(tmp_path), *other)
    assert line.startswith(f"error: --work: {tmp_path} holds another run")
    assert "0.001" in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_whose_run_is_not_known_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "done").mkdir()
    assert "holds another run (with unknown options)" in refusal(capsys, "--work", str(tmp_path))


@pytest.mark.parametrize("cuda", [False, True])
def test_both_starts_name_their_stages_differently(cuda: bool) -> None:
    nothing, shipped = recipe.from_nothing(cuda), recipe.from_shipped(cuda)
    assert not {stage.name for stage in nothing} & {stage.name for stage in shipped}
    for start, stages in (("nothing", nothing), ("shipped", shipped)):
        assert recipe.LAST[start].rpartition("-")[0] in {stage.name for stage in stages}


@pytest.mark.parametrize("start", ["nothing", "shipped"])
def test_the_scale_of_a_trial_shrinks_the_painter_too(start: str) -> None:
    trial = recipe.parse(["--scale", "0.01", "--start", start])
    stages = recipe.from_nothing(False) if start == "nothing" else recipe.from_shipped(False)
    commands = [stage.command(trial) for stage in stages if "--paint" in stage.options]
    assert commands
    for command in commands:
        assert command[command.index("--painter-steps") + 1] == "25"
        assert command[command.index("--painter-frames") + 1] == "40"
