"""Bad input of every kind, from a seeded generator: refused at once, in one line, and nothing is written."""

import dataclasses
import os
import random
import shutil
import string
import subprocess
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from oracles.command_line import Cli
from oracles.reference import configure, copy_model

from vinfinity.cli import main
from vinfinity.config import declared
from vinfinity.run import run

CASES = 240
# seconds; a refusal takes a few hundredths
SLOW = 2.0

Draw = random.Random
Arguments = list[str]


@dataclasses.dataclass(frozen=True)
class Place:
    """What the cases are made from: a folder to write in, an intact model, and the folder of a finished run."""

    folder: Path
    model: Path
    run: Path


GENERATE = ["generate", "-p", "a red ball", "--device", "cpu"]


def word(draw: Draw) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 9)))


def mangled(draw: Draw, text: str) -> str:
    """Text with a character removed, inserted or changed."""
    at = draw.randrange(len(text))
    return (
        text[:at] + draw.choice(["", "q", "_z", "#"]) + text[at + draw.randint(0, 1) :] + draw.choice("qzx")
    )


def not_a_number(draw: Draw) -> str:
    return draw.choice(
        [word(draw), f"-{draw.randint(1, 99)}", f"{draw.random():.3f}", "nan", "[3]", "{a: 1}", "1 2", "3x"]
    )


# ---- the kinds of bad input: each returns arguments that must be refused ----


def numbers(draw: Draw, place: Place) -> Arguments:
    flag = draw.choice(["--frames", "--steps", "--seed", "--fps", "--gpus"])
    return [*GENERATE, flag, not_a_number(draw)]


def limits(draw: Draw, place: Place) -> Arguments:
    flag, value = draw.choice(
        [
            ("--steps", 1001 + draw.randint(0, 99)),
            ("--fps", 241),
            ("--fps", 0),
            ("--frames", 0),
            ("--seed", 2**63),
            ("--gpus", 97),
            ("--guidance", 0.99),
            ("--guidance", "inf"),
        ]
    )
    return [*GENERATE, flag, str(value)]


def sizes(draw: Draw, place: Place) -> Arguments:
    a, b = draw.randint(16, 99), draw.randint(16, 99)
    bad = [
        f"{a}*{b}",
        f"{a}",
        f"{a}x",
        f"x{b}",
        f"{a}x{b}x3",
        f"-{a}x{b}",
        f"{a}.5x{b}",
        "8x8",
        "9999x64",
        word(draw),
    ]
    return [*GENERATE, "--size", draw.choice(bad)]


def choices(draw: Draw, place: Place) -> Arguments:
    flag, value = draw.choice([("--sampler", "ddim"), ("--device", "cuda"), ("--dtype", "fp16")])
    return ["generate", "-p", "x", flag, mangled(draw, value)]


def unknown_keys(draw: Draw, place: Place) -> Arguments:
    return [*GENERATE, f"{mangled(draw, draw.choice(list(declared())))}=3"]


def wrong_types(draw: Draw, place: Place) -> Arguments:
    """A setting other than text, with a value of another type."""
    keys = []
    for key, setting in declared().items():
        accepted = (
            typing.get_args(setting.kind)
            if typing.get_origin(setting.kind) is not Literal
            else (setting.kind,)
        )
        if str not in (setting.kind, *accepted) and typing.get_origin(setting.kind) is not tuple:
            keys.append(key)
    return [
        "generate",
        "-p",
        "x",
        f"{draw.choice(keys)}={draw.choice(['{a: 1}', '[1, 2]', word(draw), '[', '- x'])}",
    ]


def intervals(draw: Draw, place: Place) -> Arguments:
    unit = draw.choice(["parsec", "", "m", "steps ago", "%"])
    return [*GENERATE, f"checkpoint.every={draw.choice(['0', '-3', '1.5', '', 'x'])} {unit}"]


def schedules(draw: Draw, place: Place) -> Arguments:
    phases = [
        "{above: -1}",
        "{above: x, local: 0, anchors: 0}",
        "{above: 5, local: 0, anchors: 0}",
        "3",
        "{}",
    ]
    return [*GENERATE, f"attention.schedule=[{draw.choice(phases)}]"]


def files(draw: Draw, place: Place) -> Arguments:
    file = place.folder / f"{word(draw)}.mp4"
    file.write_bytes(b"precious")
    outs = [
        place.folder,
        file,
        file / "a.mp4",
        place.folder / "a.avi",
        place.folder / "a",
        Path("/dev/null/a.mp4"),
    ]
    return [*GENERATE, "--out", str(draw.choice(outs))]


def yaml_files(draw: Draw, place: Place) -> Arguments:
    path = place.folder / f"{word(draw)}.yaml"
    texts = [
        draw.randbytes(60),
        b"- a\n- b\n",
        b"just words\n",
        b"frames: [1\n",
        b"\tframes: 3\n",
        f"{mangled(draw, 'attention')}: {{local: 3}}\n".encode(),
        f"frames: {word(draw)}\n".encode(),
        f"base: {path.name}\n".encode(),
        f"base: {word(draw)}.yaml\n".encode(),
        b"base: 3\n",
        b"attention: 3\n",
        b"out: ${nothing}.mp4\n",
        b"frames: !!python/object/apply:os.system [true]\n",
        b"? [a, b]\n: 3\n",
        b"video: {crf: 52}\n",
    ]
    path.write_bytes(draw.choice(texts))
    return [*GENERATE, "--config", str(path)]


def prompts(draw: Draw, place: Place) -> Arguments:
    bad = [
        ["generate"],
        ["generate", "-p", " " * draw.randint(1, 9)],
        ["generate", "-p", ""],
        ["generate", "a", "b"],
    ]
    return draw.choice([*bad, ["generate", "-p", "\udcff\udcfe"], ["generate", "-p"]])


def commands(draw: Draw, place: Place) -> Arguments:
    bad = [
        [word(draw)],
        ["generate", f"--{word(draw)}"],
        ["generate", "-p", "x", "--frames"],
        ["models", word(draw)],
    ]
    return draw.choice(
        [*bad, ["resume"], ["decode"], ["redo"], ["extend"], ["generate", "-p", "x", "--dry-run=3"]]
    )


def model_names(draw: Draw, place: Place) -> Arguments:
    named = draw.choice([word(draw), str(place.folder / word(draw)), " ", str(place.folder), "mini/unet"])
    return ["generate", "-p", "x", "--device", "cpu", "--model", named]


def models(draw: Draw, place: Place) -> Arguments:
    """A model folder with a file that is truncated, changed or missing."""
    model = copy_model(place.model, place.folder / word(draw))
    needed = ["unet/config.json", "vae/config.json", "text_encoder/config.json"]
    needed += ["scheduler/scheduler_config.json"]
    needed += [str(path.relative_to(model)) for path in model.rglob("*.safetensors")]
    path = model / draw.choice(needed)
    data = path.read_bytes()
    if draw.random() < 0.2:
        path.unlink()
    elif path.suffix == ".json":
        path.write_bytes(
            draw.choice([data[: draw.randrange(1, len(data) - 2)], b"[]", draw.randbytes(40), b""])
        )
    else:
        cut = draw.randrange(len(data))
        path.write_bytes(draw.choice([data[:cut], b"", draw.randbytes(100), b"\xff" * 8 + data[8:]]))
    return ["generate", "-p", "x", "--device", "cpu", "--model", str(model)]


def tensors(draw: Draw, place: Place) -> Arguments:
    """Files of noise and LoRAs that are missing, or not safetensors."""
    path = place.folder / f"{word(draw)}{draw.choice(['.safetensors', '.bin'])}"
    if draw.random() < 0.7:
        path.write_bytes(draw.randbytes(draw.randint(0, 200)))
    return [*GENERATE, draw.choice(["--noise-from", "--lora"]), str(path)]


def own_run(draw: Draw, place: Place) -> Path:
    folder = place.folder / f"{word(draw)}.run"
    shutil.copytree(place.run, folder)
    return folder


def runs(draw: Draw, place: Place) -> Arguments:
    """A folder that is not a run folder, or has a damaged file."""
    command = draw.choice([["resume"], ["decode"], ["redo", "--frames", "1:2"], ["extend", "--frames", "+2"]])
    if draw.random() < 0.2:
        return [
            *command,
            str(draw.choice([place.folder, place.folder / word(draw), place.model, Path("/dev/null")])),
        ]
    folder = own_run(draw, place)
    path = folder / draw.choice(["run.json", "config.yaml"])
    data = path.read_bytes()
    path.write_bytes(draw.choice([b"", b"[]", b"\xff\xfe\x00", data[: len(data) // 2] + b"\n{[", b"- 3"]))
    return [*command, str(folder)]


def spans(draw: Draw, place: Place) -> Arguments:
    bad = ["2:1", "1:1", "a:b", "1", ":", "1:", "-1:2", "0:99", "1:2:3", "", f"{draw.randint(6, 99)}:{10**6}"]
    if draw.random() < 0.6:
        return ["redo", str(own_run(draw, place)), "--frames", draw.choice(bad)]
    return ["extend", str(own_run(draw, place)), "--frames", draw.choice(["+0", "5", "-3", "+x", "", "+1.5"])]


def other_video(draw: Draw, place: Place) -> Arguments:
    """Settings that would change the video of a run."""
    setting = draw.choice(
        ["seed=5", "steps=9", "prompt=x", "frames=4", "size=64x64", "attention.local=2", "eta=0.5"]
    )
    return [draw.choice(["resume", "decode"]), str(own_run(draw, place)), setting]


def edits(draw: Draw, place: Place) -> Arguments:
    bad = [
        "edit.redo=1:2",
        f"edit.run={place.folder / word(draw)}",
        f"edit.run={place.model}",
        "edit.blend=-1",
    ]
    return [*GENERATE, draw.choice([*bad, f"edit.redo={word(draw)}", f"edit.run={own_run(draw, place)}"])]


KINDS: list[Callable[[Draw, Place], Arguments]] = [
    *(
        numbers,
        limits,
        sizes,
        choices,
        unknown_keys,
        wrong_types,
        intervals,
        schedules,
        files,
        yaml_files,
        prompts,
    ),
    *(commands, model_names, models, models, models, tensors, runs, runs, spans, other_video, edits),
]


@pytest.fixture(scope="module")
def finished(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a.mp4"
    run(configure(model_folder, out=str(out), device="cpu", dtype="fp32", frames=6).config)
    return out.with_suffix(".run")


@pytest.fixture
def place(finished: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, model_folder, finished)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=lambda index: f"{index}-{KINDS[index].__name__}")
def test_bad_input_is_refused_in_one_line_at_once(
    kind: int, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = Draw(kind)
    for _ in range(-(-CASES // len(KINDS))):
        arguments = KINDS[kind](draw, place)
        before = sorted(place.folder.rglob("*"))
        started = time.monotonic()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        seconds = time.monotonic() - started
        printed = capsys.readouterr()
        assert ended.value.code == 2, (arguments, printed.err)
        assert printed.err.startswith("error: "), arguments
        assert printed.err.count("\n") == 1, (arguments, printed.err)
        assert "Traceback" not in printed.err
        # other processes may be using the machine
        assert seconds < 10 * SLOW, arguments
        assert sorted(place.folder.rglob("*")) == before, arguments


def test_the_installed_command_refuses_in_one_line_too(place: Place) -> None:
    """A few kinds in a process of their own, which also imports what comes before the refusal."""
    draw = Draw(1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for kind in (numbers, yaml_files, model_names, runs):
        arguments = kind(draw, place)
        command = [sys.executable, "-m", "vinfinity", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("redo", "RUN", "--frames", "9:4"), "--frames: 9:4 is an empty range; write it as FROM:TO"),
        (("redo", "RUN", "--frames", "all"), "--frames: all is not a range of frames; write it as FROM:TO"),
        (("redo", "RUN", "--frames", "2:99"), "--frames: 2:99 goes beyond the run's 6 frames"),
        (("redo", "RUN", "--frames", "1:3", "--seed", "x"), "seed: x (--seed) is not a whole number"),
        (("extend", "RUN", "--frames", "5"), "--frames: 5 is not a number of frames to append"),
        (("resume", "RUN", "--gpus", "9"), "gpus: 9 (--gpus) is more than the 6 frames of the video"),
        (("decode", "RUN", "--out", "a.avi"), "out: a.avi (--out) does not end in .mp4"),
        (("decode", "RUN", "seed=5"), "seed: 5 (command line) would change the video"),
        (("generate", "-p", "x", "--model", "minni"), "model: minni (--model) is "),
        (("bench", "unet", "--dtype", "fp61"), "--dtype: 'fp61' is not one of 'fp32', 'fp16', 'bf16'; see"),
        (("models", "convert", "a", "b", "--dtype", "fp61"), "--dtype: 'fp61' is not one of 'fp32'"),
        (("redo", "RUN"), "Missing option '--frames'; see `vinfinity redo --help`"),
    ],
)
def test_errors_name_the_option_that_was_typed(
    cli: Cli, place: Place, arguments: tuple[str, ...], message: str
) -> None:
    typed = [str(own_run(Draw(0), place)) if word == "RUN" else word for word in arguments]
    assert cli.refused(*typed).startswith(message)
