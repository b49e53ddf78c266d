"""Settings: which layer wins, which values are refused and how, and that a configuration survives a round trip."""

import dataclasses
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vinfinity.config import (
    AttentionConfig,
    Phase,
    Resolved,
    RunConfig,
    VideoConfig,
    declared,
    digest,
    load,
    parse_size,
    require_prompt,
    to_yaml,
)
from vinfinity.errors import (
    BusyError,
    DamagedError,
    InputError,
    NotFiniteError,
    OutputError,
    RankError,
    Stopped,
    VinfinityError,
    WeightsError,
    did_you_mean,
    nearest,
    one_line,
)
from vinfinity.weights.registry import PUBLISHED

REPOSITORY = Path(__file__).parents[2]


CARD = {
    "size": "96x64",
    "fps": 8,
    "steps": 25,
    "sampler": "ddim",
    "guidance": 7.5,
    "negative": "",
    "attention.trained_frames": 16,
}


def card_of(model: str) -> tuple[dict[str, object], str]:
    """Return a card with all settings that models have."""
    return CARD, f"model {model}"


def resolve(
    yaml: Path | None = None, *overrides: str, changed: Mapping[str, object] | None = None, **flags: object
) -> Resolved:
    """Merge all layers; the model's card is `CARD`, or has some values `changed`."""
    return load(
        yaml,
        overrides=overrides,
        flags=flags,
        card=lambda model: (CARD | dict(changed or {}), f"model {model}"),
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- layers ----


def test_defaults() -> None:
    resolved = resolve()
    assert resolved.config == RunConfig(
        size="96x64",
        fps=8,
        steps=25,
        sampler="ddim",
        guidance=7.5,
        attention=AttentionConfig(trained_frames=16),
    )
    assert list(resolved.origins) == list(declared())
    by_origin = {
        origin: [key for key, where in resolved.origins.items() if where == origin]
        for origin in resolved.origins.values()
    }
    assert set(by_origin) == {"default", "model mini"}
    assert sorted(by_origin["model mini"]) == sorted(CARD)


def test_each_layer_wins_over_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "steps: 10\nframes: 10\nseed: 10\nguidance: 10\n")
    run = write(tmp_path / "run.yaml", "base: base.yaml\nframes: 20\nseed: 20\nguidance: 20\n")
    resolved = resolve(run, "seed=30", "guidance=30", guidance=40.0, size=None)
    config, origins = resolved.config, resolved.origins
    assert (config.steps, config.frames, config.seed, config.guidance) == (10, 20, 30, 40.0)
    assert (config.fps, config.resolution, config.attention.trained_frames) == (8, (96, 64), 16)
    assert [origins[key] for key in ("gpus", "fps", "steps", "frames", "seed", "guidance")] == [
        "default",
        "model mini",
        str(tmp_path / "base.yaml"),
        str(run),
        "command line",
        "--guidance",
    ]


def test_a_base_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write(tmp_path / "common.yaml", "seed: 7\n")
    write(tmp_path / "sets" / "middle.yaml", "base: ../common.yaml\nsteps: 9\n")
    top = write(tmp_path / "top.yaml", "base: sets/middle.yaml\n")
    config = resolve(top).config
    assert (config.seed, config.steps) == (7, 9)


def test_groups_are_merged_key_by_key(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", "attention: {local: 4}\nvideo.crf: 30\ndecode:\n")
    config = resolve(run, "attention.anchors=2").config
    assert (config.attention.local, config.attention.anchors, config.video.crf) == (4, 2, 30)


def test_schedule_from_the_command_line() -> None:
    text = (
        "attention.schedule=[{above: 500, local: -inf, anchors: 1}, {above: -1, local: 2.5, anchors: -.inf}]"
    )
    schedule = resolve(None, text).config.attention.schedule
    assert schedule == (Phase(500, local=-math.inf, anchors=1.0), Phase(-1, local=2.5, anchors=-math.inf))


def test_the_current_phase() -> None:
    attention = AttentionConfig(trained_frames=16)
    assert [attention.phase(t).above for t in (999, 801, 800, 1, 0)] == [800, 800, -1, -1, -1]


def test_values_may_refer_to_others(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", "out: videos/${seed}-${attention.local}.mp4\n")
    assert resolve(run, seed=3).config.out == "videos/3-8.mp4"


@pytest.mark.parametrize(
    "prompt", ["no", "1984", "a: b", "{x} [y]", "${seed}", "\\${seed} \\", "???", "null ", "é ✨"]
)
def test_text_is_taken_literally(prompt: str) -> None:
    assert resolve(prompt=prompt).config.prompt == prompt
    assert resolve(None, f"prompt={prompt}").config.prompt == prompt
    assert load(None, settings={"prompt": prompt}, card=card_of).config.prompt == prompt


def test_numbers_may_come_as_text() -> None:
    config = resolve(frames="20", guidance="7", overwrite=True).config
    assert (config.frames, config.guidance, config.overwrite) == (20, 7.0, True)


def test_null_gives_a_setting_back_to_the_model(tmp_path: Path) -> None:
    resolved = resolve(write(tmp_path / "run.yaml", "steps: 9\n"), "steps=null")
    assert (resolved.config.steps, resolved.origins["steps"]) == (25, "model mini")


def test_the_example_configurations_load() -> None:
    long = resolve(REPOSITORY / "configs" / "long.yaml", seed=5)
    assert long.config.frames == 960
    assert long.config.out == "videos/long-5.mp4"
    assert long.config.attention == AttentionConfig(trained_frames=16)
    mini = resolve(REPOSITORY / "configs" / "mini.yaml").config
    assert mini == resolve(prompt="a red ball bouncing over green grass").config
    require_prompt(mini)


@pytest.mark.parametrize(
    ("name", "frames", "sampler", "guidance"),
    [
        ("videocrafter2", 2300, "sde-dpmsolver++", 12.0),
        ("zeroscope", 192, "dpmsolver++", 9.0),
        ("zeroscope-xl", 96, "dpmsolver++", 9.0),
        ("modelscope", 128, "dpmsolver++", 9.0),
        ("t2v-turbo", 512, "lcm", 7.5),
        ("wan2.1", 321, "unipc", 6.0),
        ("wan2.1-fast", 321, "euler", 1.0),
    ],
)
def test_the_settings_of_published_models_load(name: str, frames: int, sampler: str, guidance: float) -> None:
    config = resolve(REPOSITORY / "configs" / f"{name}.yaml").config
    assert (config.frames, config.sampler, config.guidance) == (frames, sampler, guidance)
    assert config.model in PUBLISHED


# ---- refusals ----


def refused(overrides: list[str]) -> str:
    with pytest.raises(InputError) as caught:
        resolve(None, *overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("frmes=3", "frames"),
        ("atention.local=3", "attention.local"),
        ("attention.lcal=3", "attention.local"),
        ("anchors=3", "attention.anchors"),
        ("anchor=3", "attention.anchors"),
        ("crf=3", "video.crf"),
        ("video.sheets=true", "video.sheet"),
    ],
)
def test_an_unknown_key_names_the_nearest(argument: str, meant: str) -> None:
    message = refused([argument])
    assert message.startswith(argument.split("=")[0] + ": ")
    assert f"did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("frames=0", "less than 1"),
        ("frames=-3", "less than 1"),
        ("frames=ten", "not a whole number"),
        ("frames=1.5", "not a whole number"),
        ("frames=true", "not a whole number"),
        ("gpus=0", "less than 1"),
        ("gpus=97", "more than the 96 frames"),
        ("model= ", "blank"),
        ("prompt=  ", "blank"),
        ("size=96", "not a size"),
        ("size=96x", "not a size"),
        ("size=-96x96", "not a size"),
        ("size=8x96", "16 to 8192"),
        ("size=96x100000", "16 to 8192"),
        ("fps=0", "between 1 and 240"),
        ("fps_condition=1000", "between 1 and 240"),
        ("seed=-1", "between 0 and"),
        (f"seed={2**63}", "between 0 and"),
        ("steps=0", "between 1 and 1000"),
        ("steps=1001", "between 1 and 1000"),
        ("sampler=dpm", "choose from ddim, dpmsolver++, sde-dpmsolver++"),
        ("guidance=-1", "less than 1"),
        ("guidance=.inf", "not a finite number"),
        ("guidance=.nan", "not a finite number"),
        ("guidance=7,5", "not a number"),
        ("eta=1.5", "between 0 and 1"),
        ("device=gpu", "choose from auto, cuda, cpu"),
        ("dtype=fp61", "did you mean"),
        ("overwrite=maybe", "not true or false"),
        ("attention=3", "is a group"),
        ("attention.local=-1", "negative"),
        ("attention.anchors=-1", "negative"),
        ("attention.trained_frames=0", "less than 1"),
        ("attention.norm=clip", "choose from video, rank"),
        ("attention.schedule=5", "not a list"),
        ("attention.schedule=[]", "does not reach the last timestep"),
        ("attention.schedule=[3]", "not a group of settings"),
        ("attention.schedule=[{above: -1}]", "add `local`"),
        ("attention.schedule=[{above: -1, local: 0, anchor: 0}]", "did you mean anchors?"),
        ("attention.schedule=[{above: 5, local: 0, anchors: 0}]", "does not reach the last timestep"),
        (
            "attention.schedule=[{above: 5, local: 0, anchors: 0}, {above: 5, local: 0, anchors: 0},"
            " {above: -1, local: 0, anchors: 0}]",
            "descending order",
        ),
        ("attention.schedule=[{above: -1, local: .inf, anchors: 0}]", "not a bias"),
        ("attention.schedule=[{above: -1, local: .nan, anchors: 0}]", "not a bias"),
        ("attention.schedule=[{above: -1, local: -inf, anchors: -inf}]", "nothing to attend to"),
        ("parallel.timeout=0", "not more than 0"),
        ("parallel.timeout=.inf", "not a finite number"),
        ("decode.where=everywhere", "choose from rank0, ranks"),
        ("decode.frames=0", "less than 1"),
        ("video.crf=52", "H.264 takes 0 to 51"),
        ("video.crf=64", "between 0 and 63"),
        ("fps=24/0", "not a frame rate"),
        ("fps=film", "write it as 24, 23.976 or 24000/1001"),
        ("fps=1/2", "not between 1 and 240"),
        ("video.preset=slowest", "did you mean slow"),
        ("video.pixel_format=rgb24", "choose from yuv420p"),
        ("lora=[1", "not valid YAML"),
        ("steps=${nothing}", "cannot be resolved"),
        ("steps=${steps}", "cannot be resolved"),
        ("frames=???", "not a whole number"),
        ("a red ball", "--prompt TEXT"),
        ("=3", "unknown setting"),
    ],
)
def test_values_that_cannot_be_used(argument: str, expected: str) -> None:
    message = refused([argument])
    assert expected in message
    assert "; " in message  # a remedy follows


def test_a_scope_without_anchors_must_be_local() -> None:
    schedule = "attention.schedule=[{above: -1, local: -inf, anchors: 0}]"
    assert resolve(None, schedule).config.attention.schedule[0].local == -math.inf
    assert "nothing to attend to" in refused([schedule, "attention.anchors=0"])


def test_errors_name_the_source_of_a_value(tmp_path: Path) -> None:
    run = write(tmp_path / "run.yaml", "frames: 0\n")
    cases: list[tuple[dict[str, Any], str]] = [({}, str(run)), ({"frames": 0}, "--frames")]
    for flags, source in cases:
        with pytest.raises(InputError) as caught:
            resolve(run, **flags)
        assert caught.value.message == f"frames: 0 ({source}) is less than 1; use at least 1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("frmes: 3\n", "did you mean frames?"),
        ("attention:\n  lokal: 3\n", "did you mean attention.local?"),
        ("negative: no\n", "put it in quotes"),
        ("prompt: 1984\n", "put it in quotes"),
        ("frames: [1\n", "not valid YAML at line"),
        ("frames: 1\nframes: 2\n", "not valid YAML"),
        ("- frames\n", "not a mapping"),
        ("frames\n", "not a mapping"),
        ("5\n", "not a mapping"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("seed: !!python/object:os.system x\n", "not valid YAML"),
        ("seed: 2024-01-01\n", "not a whole number"),
        ("base: 5\n", "not a path"),
        ("base: nowhere.yaml\n", "does not exist"),
        ("base: run.yaml\n", "is circular (run.yaml -> run.yaml)"),
        ("attention: 3\n", "is a group"),
        ("frames: {a: 1}\n", "frames.a"),
    ],
)
def test_yaml_that_cannot_be_used(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(write(tmp_path / "run.yaml", text))
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path) -> None:
    assert resolve(write(tmp_path / "run.yaml", "# nothing yet\n")).config == resolve().config


def test_yaml_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere.yaml")
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(InputError, match=r"picture\.yaml"):
        load(tmp_path / "picture.yaml")


def test_circular_bases_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "base: b.yaml\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml -> b\.yaml -> a\.yaml"):
        load(tmp_path / "a.yaml")


def test_cards_are_checked_too() -> None:
    with pytest.raises(InputError, match=r"steps: 0 \(model odd\)"):
        resolve(model="odd", changed={"steps": 0})
    with pytest.raises(InputError, match=r"stepz: 5 \(model odd\) is an unknown setting; did you mean steps"):
        resolve(model="odd", changed={"stepz": 5})


def test_a_prompt_is_needed_to_generate() -> None:
    with pytest.raises(InputError, match=r"^prompt: none given; "):
        require_prompt(resolve().config)


def test_sizes() -> None:
    assert parse_size("517x33") == (517, 33)
    assert resolve(size="517x33").config.resolution == (517, 33)


# ---- round trips ----

UNUSUAL = RunConfig(
    prompt='say "${seed}": \\${x} # no, yes\nand a second line',
    negative="null",
    size="517x33",
    fps=12,
    steps=7,
    sampler="lcm",
    guidance=1e7,
    seed=2**63 - 1,
    attention=AttentionConfig(schedule=(Phase(-1, local=-math.inf, anchors=0.25),), trained_frames=24),
    video=VideoConfig(crf=0, preset="slow", metadata=False),
)


@pytest.mark.parametrize("config", [resolve().config, UNUSUAL])
def test_yaml_is_read_back_to_an_equal_configuration(tmp_path: Path, config: RunConfig) -> None:
    origins = dict.fromkeys(list(declared()), "--somewhere")
    for text in (to_yaml(config), to_yaml(config, origins=origins)):
        assert load(write(tmp_path / "run.yaml", text)).config == config


def test_origins_are_comments_above_their_values() -> None:
    text = to_yaml(
        resolve().config, origins={"seed": "--seed", "attention.local": "run.yaml", "frames": "default"}
    )
    assert [line.strip() for line in text.splitlines() if "#" in line] == ["# --seed", "# run.yaml"]
    assert "# --seed\nseed: 0\n" in text
    assert "  # run.yaml\n  local: 8\n" in text


def test_the_digest_covers_what_determines_the_video() -> None:
    base = digest(UNUSUAL)
    assert base == digest(dataclasses.replace(UNUSUAL))
    assert len(base) == 64
    same: list[dict[str, object]] = [
        {"gpus": 3},
        {"out": "x.mp4"},
        {"device": "cpu"},
        {"video": VideoConfig()},
    ]
    other: list[dict[str, object]] = [
        {"seed": 1},
        {"prompt": "x"},
        {"frames": 7},
        {"attention": AttentionConfig(trained_frames=24)},
    ]
    for change in same:
        assert digest(dataclasses.replace(UNUSUAL, **change)) == base  # type: ignore[arg-type]
    for change in other:
        assert digest(dataclasses.replace(UNUSUAL, **change)) != base  # type: ignore[arg-type]


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = "import pathlib, sys; from vinfinity.config import digest, load; "
    code += "print(digest(load(pathlib.Path(sys.argv[1])).config))"
    path = write(tmp_path / "run.yaml", to_yaml(UNUSUAL))
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == digest(UNUSUAL)


# ---- errors ----


def test_errors_survive_pickling_between_processes() -> None:
    first = InputError("size", "9x9", "take more", problem="is small", source="--size")
    assert str(first) == "size: 9x9 (--size) is small; take more"
    kinds = [DamagedError, NotFiniteError, OutputError, RankError, BusyError, Stopped, VinfinityError]
    errors = [first, VinfinityError("no", exit_code=7), WeightsError("model", "x", "fetch it")]
    for error in (*errors, *(kind("a message") for kind in kinds)):
        error.message += ", and more"
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert (str(again), again.args, again.exit_code) == (str(error), error.args, error.exit_code)


def test_nearest() -> None:
    assert nearest("framse", ["prompt", "frames"]) == "frames"
    assert nearest("xyzzy", ["prompt", "frames"]) is None
    assert did_you_mean("framse", ["prompt", "frames"]) == "did you mean frames?"
    assert did_you_mean("xyzzy", ["prompt", "frames"]) == ""


def test_one_line() -> None:
    assert one_line(ValueError("first\n  second\t third ")) == "first second third"
    assert one_line("a\u2028b\x85c\x1b[1md\udcff\0") == r"a b c\u001b[1md\udcff\u0000"


def test_every_message_is_one_line_that_shows_what_is_invisible() -> None:
    error = InputError("out", Path("a\nb\u2028.mp4"), "choose another name", problem="is odd")
    assert error.message == r"out: 'a\nb\u2028.mp4' is odd; choose another name"
    assert InputError("prompt", "\udcff", "mend it").message == r"prompt: '\udcff'; mend it"
    assert OutputError("a\nb: cannot be written").message == "a b: cannot be written"
