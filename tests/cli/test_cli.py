"""The command line as users see it: output, refusals and exit codes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oracles.command_line import Cli
from oracles.video import read_video

from vinfinity import __version__
from vinfinity.config import declared, load, parse_size
from vinfinity.media.mp4 import read_metadata
from vinfinity.weights.card import model_defaults

REPOSITORY = Path(__file__).parents[2]
BALL = "a red ball bouncing over green grass"
MINI_SIZE = str(model_defaults("mini")[0]["size"])
SHORT = ("--frames", "3", "--steps", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")


# ---- help ----


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"vinfinity {__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(cli: Cli, arguments: tuple[str, ...]) -> None:
    code, out, _ = cli(*arguments)
    assert code == 0
    assert "generate" in out
    assert "config" in out


def test_help_lists_every_flag(cli: Cli) -> None:
    flags = [str(setting.flag) for setting in declared().values() if setting.setting.panel] + [
        "--config",
        "--debug",
    ]
    for command, own in (("generate", "--dry-run"), ("config", "--yaml")):
        _, out, _ = cli(command, "--help")
        assert [flag for flag in (*flags, own) if flag not in out] == []


def test_help_is_quick() -> None:
    """In seconds of the processor, which other processes hardly affect: 0.25; importing torch alone takes 3."""
    command = [sys.executable, "-m", "vinfinity", "--help"]
    spans = []
    for _ in range(3):
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
        after = os.times()
        user = after.children_user - before.children_user
        spans.append(user + after.children_system - before.children_system)
    assert min(spans) < 1.0


def test_completion_of_settings_and_choices(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vinfinity.cli.options import complete_from, complete_key, complete_model

    assert complete_key("attention.an") == ["attention.anchors="]
    assert complete_from("ddim", "dpmsolver++")("dp") == ["dpmsolver++"]
    assert complete_model("mi") == ["mini"]
    parent = model_folder.parent
    assert str(model_folder) in complete_model(f"{parent}/")
    monkeypatch.chdir(parent)
    for before in ("", "./", f"../{parent.name}/"):
        assert complete_model(f"{before}{model_folder.name}") == [f"{before}{model_folder.name}"]
    assert complete_model("[") == []


def test_a_shell_can_install_completion(cli: Cli) -> None:
    _, out, _ = cli("--help")
    assert "--install-completion" in out


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("generate", "--framse", "3"), r"--framse: no such option; did you mean --frames\?"),
        (("generate", "--xyzzy"), r"--xyzzy: no such option; `vinfinity generate --help` lists the options"),
        (("generat",), "No such command 'generat'. Did you mean 'generate'?"),
        (("generate", "--frames"), "'--frames' requires an argument"),
        (("generate",), "prompt: none given; describe the video"),
        (("generate", "--prompt", ""), "prompt: none given"),
        (("generate", "--prompt", "  "), r"prompt: ' ' \(--prompt\) is blank"),
        (("generate", "-p", "x", "--frames", "0"), r"frames: 0 \(--frames\) is less than 1"),
        (("generate", "-p", "x", "--frames", "-5"), r"frames: -5 \(--frames\) is less than 1"),
        (("generate", "-p", "x", "-n", "ten"), r"frames: ten \(--frames\) is not a whole number"),
        (("generate", "-p", "x", "--size", "big"), r"size: big \(--size\) is not a size"),
        (("generate", "-p", "x", "--sampler", "ddmi"), r"did you mean ddim\?"),
        (("generate", "-p", "x", "--model", "minni"), "model: minni .*did you mean mini"),
        (("generate", "-p", "x", "atention.local=4"), r"did you mean attention\.local\?"),
        (("generate", "-p", "x", "over", "green"), "argument: over is not a setting"),
        (("generate", "-p", "x", "-c", "nowhere.yaml"), r"--config: nowhere\.yaml does not exist"),
        (("generate", "-p", "x", "--out", "video.avi"), r"does not end in \.mp4"),
        (
            ("generate", "-p", "x", "--out", "there.mp4"),
            r"out: there\.mp4 \(--out\) already exists; .*--overwrite",
        ),
        (
            ("generate", "-p", "x", "--noise-from", "no.safetensors"),
            r"noise_from: no\.safetensors \(--noise-from\) does not exist",
        ),
        (("config", "--frames", "0"), "less than 1"),
    ],
)
def test_refusals_are_one_line_with_a_remedy(cli: Cli, arguments: tuple[str, ...], expected: str) -> None:
    Path("there.mp4").write_bytes(b"precious")
    assert re.search(expected, cli.refused(*arguments)), expected
    assert Path("there.mp4").read_bytes() == b"precious"
    assert [file.name for file in Path().iterdir()] == ["there.mp4"]


def test_a_typo_in_yaml_names_the_file_and_the_nearest_key(cli: Cli) -> None:
    Path("run.yaml").write_text("frmes: 3\n")
    message = cli.refused("generate", "-p", "x", "-c", "run.yaml")
    assert message == "frmes: 3 (run.yaml) is an unknown setting; did you mean frames?"


def test_unexpected_errors_are_one_line_unless_debug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr("vinfinity.cli.options.load", broken)
    message = cli.refused("config", code=1)
    pattern = r"ZeroDivisionError: first second \(\w+\.py:\d+\); run again with --debug for the traceback"
    assert re.fullmatch(pattern, message)
    for arguments in (("config", "--debug"), ("--debug", "config")):
        code, _, err = cli(*arguments)
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("error: ZeroDivisionError: first second")


def test_ctrl_c_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vinfinity.cli.options.load", interrupted)
    assert cli.refused("config", code=130) == "interrupted"


# ---- config ----


def test_config_names_every_setting_and_its_origin(cli: Cli) -> None:
    Path("run.yaml").write_text("attention: {local: 4}\n")
    code, out, _ = cli("config", "-c", "run.yaml", "video.crf=20", "--seed", "5")
    assert code == 0
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert [row[0] for row in rows] == list(declared())
    by_key = {key: (value, origin) for key, value, origin in rows}
    assert by_key["attention.local"] == ("4", "run.yaml")
    assert by_key["video.crf"] == ("20", "command line")
    assert by_key["seed"] == ("5", "--seed")
    assert by_key["steps"][1] == "model mini"
    assert by_key["frames"] == ("96", "default")


def test_config_as_yaml_can_be_used_as_a_file(cli: Cli) -> None:
    code, out, _ = cli("config", "-p", BALL, "--frames", "7", "attention.anchors=2", "--yaml")
    assert code == 0
    Path("run.yaml").write_text(out)
    config = load(Path("run.yaml")).config
    assert (config.prompt, config.frames, config.attention.anchors, config.size) == (BALL, 7, 2, MINI_SIZE)
    assert cli("config", "-c", "run.yaml", "--yaml")[1].replace("# run.yaml\n", "").count("# ") < out.count(
        "# "
    )


# ---- generate ----


def test_a_dry_run_shows_the_plan_and_writes_nothing(cli: Cli) -> None:
    code, out, err = cli(
        "generate", "-p", BALL, "--frames", "40", "--size", "90x61", "--dry-run", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert "40 frames of 90x61" in out
    assert "a-red-ball-bouncing-over-green-grass.mp4" in out
    assert list(Path().iterdir()) == []


def test_settings_without_effect_are_part_of_the_plan(cli: Cli) -> None:
    code, out, err = cli(
        "generate", "-p", BALL, "--sampler", "dpmsolver++", "eta=0.5", "--dry-run", "--device", "cpu"
    )
    assert (code, err) == (0, "")
    assert out.count("eta: has no effect: only the samplers ddim and videocrafter2 use it") == 1


def test_one_setting_is_explained_or_all_are_printed_as_yaml(cli: Cli) -> None:
    line = cli.refused("config", "--yaml", "--explain", "seed")
    assert line == "--explain: seed conflicts with --yaml; remove one of the two"


def test_generate_makes_a_video_and_its_sheet(cli: Cli) -> None:
    code, out, _ = cli("generate", "-p", BALL, *SHORT, "--save-latents", "latents.safetensors")
    assert code == 0
    name = "a-red-ball-bouncing-over-green-grass"
    assert sorted(file.name for file in Path().iterdir()) == [
        f"{name}.mp4",
        f"{name}.png",
        f"{name}.run",
        "latents.safetensors",
    ]
    assert read_video(Path(f"{name}.mp4")).shape == (3, *reversed(parse_size(MINI_SIZE)), 3)
    metadata = read_metadata(Path(f"{name}.mp4"))
    assert metadata["title"] == BALL
    assert '"seed": 0' in metadata["comment"]
    for printed in (f"{name}.mp4", f"{name}.png", "3 frames", "peak memory"):
        assert printed in out


def test_generate_replaces_files_only_with_overwrite(cli: Cli) -> None:
    arguments = (
        "generate",
        "-p",
        BALL,
        *SHORT,
        "--out",
        "new/ball.mp4",
        "--size",
        "49x35",
        "video.sheet=false",
    )
    assert cli(*arguments)[0] == 0
    first = Path("new/ball.mp4").read_bytes()
    assert "already exists" in cli.refused(*arguments, "--seed", "1")
    assert Path("new/ball.mp4").read_bytes() == first
    assert cli(*arguments, "--seed", "1", "--overwrite")[0] == 0
    assert Path("new/ball.mp4").read_bytes() != first
    assert sorted(file.name for file in Path("new").iterdir()) == ["ball.mp4", "ball.run"]


@pytest.mark.parametrize("command", ["denoiser", "scaling", "e2e", "exchange", "memory", "decode"])
def test_measurements_replace_files_only_with_overwrite(command: str, cli: Cli) -> None:
    Path("there.json").write_text("precious")
    line = cli.refused("bench", command, "--out", "there.json")
    assert line == "--out: there.json already exists; choose another name or add --overwrite"
    assert Path("there.json").read_text() == "precious"
    line = cli.refused("bench", command, "--overwrite")
    assert line == "--overwrite: true has no effect without a file; add --out FILE"
    if command == "decode":
        small = ("--frames", "2", "--size", "32x32")
        assert cli("bench", command, *small, "--out", "there.json", "--overwrite")[0] == 0
        assert json.loads(Path("there.json").read_text())


def test_words_the_model_was_never_taught_are_named(cli: Cli) -> None:
    code, _, err = cli("generate", "-p", "a red giraffe", *SHORT)
    assert code == 0
    [warning] = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert "giraffe" in warning
    assert "ball" in warning


def test_ctrl_c_ends_a_run_with_one_line_and_no_video(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vinfinity",
        "generate",
        "-p",
        BALL,
        "--frames",
        "400",
        "--device",
        "cpu",
    ]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    # by now torch is imported, or denoising
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    if process.poll() is None:
        # the second one does not wait for the end of the step
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    code, last = process.returncode, err.splitlines()[-1]
    assert (code, last) == (130, "error: interrupted") or (code == 75 and last.startswith("error: stopped "))
    assert "Traceback" not in err
    assert [path for path in tmp_path.iterdir() if path.suffix != ".run"] == []


def test_the_defaults_are_those_of_the_dataclass(cli: Cli) -> None:
    _, out, _ = cli("config", "--yaml")
    Path("run.yaml").write_text(out)
    config = load(Path("run.yaml")).config
    assert (config.frames, config.seed, config.attention.local) == (declared()["frames"].default, 0, 8)


def test_a_setting_is_explained(cli: Cli) -> None:
    code, out, _ = cli("config", "--explain", "attention.local", "attention.local=4")
    assert code == 0
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert rows["meaning"] == "Local scope: number of frames on either side that a frame attends to."
    assert (rows["default"], rows["value"]) == ("8", "4 (command line)")
    message = cli.refused("config", "--explain", "atention.local")
    assert message == "--explain: atention.local is an unknown setting; did you mean attention.local?"
