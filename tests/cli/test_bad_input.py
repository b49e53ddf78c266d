"""Bad input of every kind, from a seeded generator: refused at once, in one line, and nothing is written."""

import dataclasses
import os
import random
import resource
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
from vinfinity.config.schema import bare
from vinfinity.run import run

CASES = 330

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
    """Return a setting other than text, with a value of another type."""
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
    """Return a model folder with a file that is truncated, changed or missing."""
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
    """Return a folder that is not a run folder, or has a damaged file."""
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
    """Give settings that would change the video of a run."""
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


def other_notation(draw: Draw) -> str:
    """Return a number as YAML 1.1, Python or other scripts write it, and nothing that is read as decimal."""
    digits = "".join(draw.choices("1234567", k=draw.randint(1, 4)))
    wide = digits.translate({ord(digit): ord(digit) - ord("0") + ord("０") for digit in digits})
    forms = [f"0{digits}", f"0x{digits}", f"0o{digits}", f"0b{digits}", f"{digits}:30", f"{digits}_000", wide]
    return draw.choice([*forms, f"{digits},5", f"{digits}e", f"-0{digits}", f"{digits} ", f"'{digits}'"])


def notations(draw: Draw, place: Place) -> Arguments:
    """Give settings that are numbers, as a flag, as KEY=VALUE and in a file."""
    kinds = {key: setting for key, setting in declared().items() if bare(setting.kind) in (int, float)}
    key, text = draw.choice(list(kinds)), other_notation(draw)
    flag = kinds[key].flag
    if flag is not None and draw.random() < 0.5:
        return [*GENERATE, flag, text]
    if draw.random() < 0.5:
        return [*GENERATE, f"{key}={text}"]
    path = place.folder / f"{word(draw)}.yaml"
    path.write_text(f"{key}: {draw.choice(['', '!!int ', '!!float '])}{text.strip()}a\n", encoding="utf-8")
    return [*GENERATE, "--config", str(path)]


def other_numbers(draw: Draw, place: Place) -> Arguments:
    """Options that are numbers, but not settings of a run."""
    command, flag = draw.choice(
        [
            (["bench", "denoiser"], "--frames"),
            (["bench", "denoiser"], "--rounds"),
            (["bench", "denoiser"], "--threads"),
            (["bench", "scaling"], "--ranks"),
            (["bench", "e2e"], "--frames"),
            (["bench", "exchange"], "--local"),
            (["bench", "memory"], "--chunk"),
            (["bench", "decode"], "--tile"),
            (["plan", "-p", "x"], "--device-memory"),
        ]
    )
    return [*command, flag, draw.choice([other_notation(draw), not_a_number(draw), "0" * 9 + "1", "9" * 40])]


def limits_of_all(draw: Draw, place: Place) -> Arguments:
    """Whole numbers that no machine could count to."""
    keys = [key for key, setting in declared().items() if bare(setting.kind) is int]
    return [*GENERATE, f"{draw.choice(keys)}={10 ** draw.randint(20, 90)}"]


def long_name(draw: Draw, suffix: str) -> str:
    character = draw.choice(["x", "é", "球", "🎈"])
    return character * -(-(256 - len(suffix)) // len(character.encode())) + suffix


def output_names(draw: Draw, place: Place) -> Arguments:
    """Names that a video or its latents cannot have."""
    flag, suffix = draw.choice([("--out", ".mp4"), ("--save-latents", ".safetensors")])
    folders = ["", f"{word(draw)}/"]
    (place.folder / "mine.run").mkdir(exist_ok=True)
    (place.folder / "mine.run" / "thesis.tex").touch()
    (place.folder / "file.run").touch()
    other = [
        "",
        ".",
        "..",
        "/",
        " ",
        suffix,
        f"a{suffix}.",
        f"a{suffix} ",
        f"a{suffix}/..",
        "~nobody-at-all/a",
    ]
    taken = ["mine.mp4", "file.mp4", "mine.run/a.safetensors"]
    control = draw.choice(
        ["\n", "\r", "\t", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029", "\0", "\udcff", "\ud800"]
    )
    long = [f"{draw.choice(folders)}{long_name(draw, suffix)}", f"{'new/' * 1100}a{suffix}"]
    bad = [
        *draw.sample(other, 3),
        *long,
        f"{draw.choice(folders)}a{control}b{suffix}",
        f"{long_name(draw, '')}/a{suffix}",
    ]
    if draw.random() < 0.2:
        name = draw.choice(taken)
        return [
            *GENERATE,
            "--out",
            "mine.mp4" if name.endswith("tensors") else name,
            "--save-latents",
            "mine.run/a.safetensors",
        ]
    return [*GENERATE, flag, draw.choice(bad)]


def other_outputs(draw: Draw, place: Place) -> Arguments:
    """Files of measurements, and folders of converted models."""
    names = ["a\nb.json", long_name(draw, ".json"), "/dev/null/a.json", str(place.folder), "a\udcff.json"]
    if draw.random() < 0.4:
        return ["models", "convert", str(place.model), draw.choice([*names, str(place.model)])]
    command = draw.choice([["denoiser"], ["scaling"], ["e2e"], ["exchange"], ["memory"], ["decode"]])
    return ["bench", *command, "--out", draw.choice(names)]


def input_names(draw: Draw, place: Place) -> Arguments:
    """Give inputs with names that no file can have, and folders in place of files."""
    folder = place.folder / f"{word(draw)}.safetensors"
    folder.mkdir()
    (place.folder / "loop.safetensors").unlink(missing_ok=True)
    (place.folder / "loop.safetensors").symlink_to("loop.safetensors")
    flag = draw.choice(["--noise-from", "--lora", "--decoder", "--model", "--config"])
    names = [
        long_name(draw, ".safetensors"),
        "~nobody-at-all/a.safetensors",
        "a\nb.safetensors",
        "a\udcff.safetensors",
    ]
    names += [
        "loop.safetensors",
        "/dev/null/a.safetensors",
        "\0.safetensors",
        f"{'a/' * 2500}b.safetensors",
        "",
    ]
    if draw.random() < 0.3:
        command = draw.choice(
            [["resume"], ["decode"], ["redo", "--frames", "1:2"], ["extend", "--frames", "+2"]]
        )
        return [*command, draw.choice([*names, "..", "/", "a/.."])]
    return [*GENERATE, flag, draw.choice([*names, str(folder)])]


def texts(draw: Draw, place: Place) -> Arguments:
    """Text that no file of settings could keep, and files that were meant to hold other text."""
    bad = draw.choice(["\udcff", "\ud83d", "a\udc80b", "\0", "a\0"])
    key = draw.choice(["prompt", "negative", "model", "lora", "decoder", "out", "noise_from", "edit.run"])
    if draw.random() < 0.5:
        return ["generate", "--device", "cpu", f"{key}={f'[{bad}]' if key == 'lora' else bad}"]
    path = place.folder / f"{word(draw)}.yaml"
    forms = [
        'prompt: "a\\0b"',
        'prompt: "\\ud83d"',
        "prompt: a\x07b",
        "prompt: a\x85b: c",
        "prompt: 'a",
        "prompt: !!binary YQ==",
    ]
    forms += [
        "prompt: &a [*a]",
        "prompt: !!set {a}",
        "prompt: |a",
        "prompt: >\n\ta",
        "prompt: @a",
        "prompt: `a",
        "prompt: %a: b",
    ]
    path.write_text(draw.choice(forms) + "\n", encoding="utf-8")
    return ["generate", "--device", "cpu", "--config", str(path)]


def outputs_of_edits(draw: Draw, place: Place) -> Arguments:
    """Edits that would replace the run they start from, and runs under names that are none."""
    run = own_run(draw, place)
    if draw.random() < 0.4:
        other = run.rename(run.with_suffix(draw.choice([".running", ".RUN", ""])))
        return [draw.choice(["resume", "decode"]), str(other)]
    command = draw.choice([["redo", "--frames", "1:2"], ["extend", "--frames", "+2"]])
    out = draw.choice(
        [str(run.with_suffix(".mp4")), f"{place.folder}/./{run.stem}.mp4", long_name(draw, ".mp4"), "a.run"]
    )
    return [*command, str(run), "--overwrite", "--out", out]


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
    *(notations, notations, other_numbers, limits_of_all, output_names, output_names, other_outputs),
    *(input_names, input_names, texts, outputs_of_edits),
]
CASES_OF_A_KIND = -(-CASES // len(KINDS))


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
    kind: int,
    place: Place,
    capsys: pytest.CaptureFixture[str],
    record_worst: Callable[[str, float], None],
) -> None:
    draw, slowest = Draw(kind), 0.0
    for _ in range(CASES_OF_A_KIND):
        arguments = KINDS[kind](draw, place)
        before = sorted(place.folder.rglob("*"))
        started = time.monotonic()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        slowest = max(slowest, time.monotonic() - started)
        printed = capsys.readouterr()
        assert ended.value.code == 2, (arguments, printed.err)
        assert printed.err.startswith("error: "), arguments
        assert printed.err.count("\n") == 1, (arguments, printed.err)
        assert "Traceback" not in printed.err
        assert sorted(place.folder.rglob("*")) == before, arguments
    record_worst("slowest refusal in seconds", slowest)


def refused_by_a_process(arguments: Arguments) -> float:
    """Run the installed command, which must refuse in one line; return its processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "vinfinity", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2, (arguments, done.stderr)
    assert done.stderr.startswith("error: "), (arguments, done.stderr)
    assert done.stderr.count("\n") == 1, (arguments, done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_installed_command_refuses_in_one_line_too(place: Place) -> None:
    """A few kinds in a process of their own, which also imports what comes before the refusal."""
    draw = Draw(1)
    for kind in (numbers, yaml_files, model_names, runs):
        refused_by_a_process(kind(draw, place))


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(len(KINDS)), ids=lambda index: f"{index}-{KINDS[index].__name__}")
def test_the_installed_command_refuses_every_case_in_one_line(
    kind: int, place: Place, record_worst: Callable[[str, float], None]
) -> None:
    draw = Draw(kind)
    seconds = []
    for _ in range(CASES_OF_A_KIND):
        arguments = KINDS[kind](draw, place)
        # no shell can give a NUL to a command
        if not any("\0" in argument for argument in arguments):
            seconds.append(refused_by_a_process(arguments))
    record_worst("slowest refusal of a command in processor seconds", max(seconds))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("redo", "RUN", "--frames", "9:4"), "--frames: 9:4 is an empty range; write it as FROM:TO"),
        (("redo", "RUN", "--frames", "all"), "--frames: all is not a range of frames; write it as FROM:TO"),
        (("redo", "RUN", "--frames", "2:99"), "--frames: 2:99 goes beyond the run's 6 frames"),
        (("redo", "RUN", "--frames", "1:3", "--seed", "x"), "seed: x (--seed) is not a whole number"),
        (("extend", "RUN", "--frames", "5"), "--frames: 5 is not a number of frames to append"),
        (("resume", "RUN", "--gpus", "9"), "gpus: 9 (--gpus) is more than the 6 frames; use at most 6"),
        (("decode", "RUN", "--out", "a.avi"), "out: a.avi (--out) does not end in .mp4"),
        (("decode", "RUN", "seed=5"), "seed: 5 (command line) would change the video"),
        (("generate", "-p", "x", "--model", "minni"), "model: minni (--model) is "),
        (
            ("generate", "-p", "x", "--frames", "010"),
            "frames: 010 (--frames) is not a whole number; write it in",
        ),
        (("generate", "-p", "x", "-n", "1:30"), "frames: 1:30 (--frames) is not a whole number; write it in"),
        (("redo", "RUN", "--frames", "1:3", "--seed", "010"), "seed: 010 (--seed) is not a whole number"),
        (("redo", "RUN", "--frames", "01:3"), "--frames: 01:3 is not a range of frames; write it as FROM:TO"),
        (("extend", "RUN", "--frames", "+010"), "--frames: +010 is not a number of frames to append"),
        (
            ("bench", "denoiser", "--frames", "010"),
            "--frames: 010 is not a whole number; write it in decimal",
        ),
        (("plan", "-p", "x", "--device-memory", "1_0"), "--device-memory: 1_0 is not a number; write it in"),
        (
            ("bench", "denoiser", "--out", "a\nb.json"),
            r"--out: 'a\nb.json' has a line break or another control",
        ),
        (
            ("bench", "denoiser", "--dtype", "fp61"),
            "--dtype: 'fp61' is not one of 'fp32', 'fp16', 'bf16'; see",
        ),
        (("models", "convert", "a", "b", "--dtype", "fp61"), "--dtype: 'fp61' is not one of 'fp32'"),
        (("redo", "RUN"), "Missing option '--frames'; see `vinfinity redo --help`"),
    ],
)
def test_errors_name_the_option_that_was_typed(
    cli: Cli, place: Place, arguments: tuple[str, ...], message: str
) -> None:
    typed = [str(own_run(Draw(0), place)) if word == "RUN" else word for word in arguments]
    assert cli.refused(*typed).startswith(message)
