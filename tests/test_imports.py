"""The rules of the architecture: imports go downwards, and some packages have one door each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vinfinity

PACKAGE = Path(__file__).parents[1] / "vinfinity"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part of the package may import of the others: cli -> run -> the rest -> models -> parallel.
BELOW = {
    "errors": set(),
    "system": {"errors"},
    "config": {"errors", "system"},
    "parallel": {"errors", "system"},
    "models": {"errors", "parallel", "system"},
    "denoise": {"errors", "config", "models", "parallel", "system"},
    "media": {"errors", "config", "models", "parallel", "system"},
    "weights": {"errors", "denoise", "models", "system"},
    "runs": {"errors", "config", "denoise", "media", "models", "parallel", "system", "weights"},
    "machine": {"errors", "parallel", "system", "weights"},
    "resolve": {"config", "media", "system", "weights"},
}
JOB = {*BELOW} - {"resolve", "machine"}
ABOVE = {
    "job": JOB,
    "job_report": {*JOB, "job"},
    "planning": {*JOB, "job", "machine"},
    "session": {*BELOW, "job", "job_report", "machine"},
    "networks": {"job", "models", "weights"},
    "video": {"errors", "config", "media", "system"},
    "inputs": {"errors", "denoise", "job", "media", "models", "networks", "parallel", "system"},
    "denoiser": {"errors", "denoise", "job", "models", "parallel", "planning", "system"},
    "denoising": {"denoise", "denoiser", "inputs", "job", "media", "networks", "parallel", "planning"},
    "pipeline": {*BELOW, "denoising", "inputs", "job", "job_report", "networks", "planning", "video"},
    "encoding": {*BELOW, "job", "networks", "session"},
    "figures": {"job", "media", "parallel"},
    "previews": {*BELOW, "job", "session"},
    "task": {"config", "job", "media", "parallel", "runs", "system"},
    "decoding": {"job", "media", "networks", "parallel", "runs", "system", "task"},
    "run": {
        *BELOW,
        *(
            "decoding",
            "denoising",
            "encoding",
            "figures",
            "inputs",
            "job",
            "networks",
            "planning",
            "previews",
        ),
        *("session", "task"),
    },
    "decode_again": {
        "config",
        "decoding",
        "job_report",
        "networks",
        "parallel",
        "runs",
        "session",
        "system",
        "task",
    },
    "evaluation": {"errors", "config", "media", "parallel", "runs", "system"},
    "batch": {*BELOW, "job", "networks", "planning", "run", "session", "task"},
    "doctor": {"errors", "machine", "parallel", "system", "weights"},
    "api": {*BELOW, "batch", "networks", "pipeline", "run", "session", "task", "video"},
}
EVERYTHING = {*BELOW, *ABOVE}
TOP = {
    "cli": {*EVERYTHING, "bench"},
    "bench": EVERYTHING,
    "__main__": {"cli"},
    "__init__": {*BELOW, "api", "batch", "evaluation", "pipeline", "task", "video"},
}
ALLOWED = {**BELOW, **ABOVE, **TOP}


def imported(file: Path) -> set[str]:
    """Return the full names of all that a file imports, wherever in it; relative imports raise."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: import by the full name"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def importers(package: str) -> set[str]:
    """Return the files of the package that import `package` or something of it."""
    return {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(f"{name}.".startswith(f"{package}.") for name in imported(file))
    }


def part(file: Path) -> str:
    """`models` for vinfinity/models/unet.py, `cli` for vinfinity/cli/run.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_each_wrapped_package_is_imported_in_one_place() -> None:
    assert importers("omegaconf") == {"config/sources.py"}
    assert importers("yaml") == {"config/yaml.py"}
    assert all(name.startswith("parallel/") for name in importers("torch.distributed"))
    # transformers is imported by name, from weights on disk alone: see evaluation/extras.py
    assert importers("diffusers") | importers("transformers") == set()
    for package in ("cv2", "scenedetect"):
        assert all(name.startswith("evaluation/") for name in importers(package))


def test_families_are_known_to_their_list_and_to_benchmarks_only() -> None:
    """A second family takes a folder and a line in families.py."""
    for family in (path for path in (PACKAGE / "models").iterdir() if (path / "family.py").exists()):
        outside = {
            name
            for name in importers(f"vinfinity.models.{family.name}")
            if not name.startswith((f"models/{family.name}/", "bench/"))
        }
        assert outside == {"models/families.py"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downwards(file: Path) -> None:
    own = part(file)
    used = {name.split(".")[1] for name in imported(file) if name.startswith("vinfinity.")} - {
        own,
        "__version__",
    }
    assert used <= ALLOWED[own], f"{own} must not import {', '.join(sorted(used - ALLOWED[own]))}"


def test_type_checkers_see_the_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (node.module, alias.name, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    # `as` exports a name in strict mode
    assert seen == {
        (f"vinfinity.{module}", name, name) for module, names in vinfinity._MODULES.items() for name in names
    }


def loaded_by(*arguments: str, code: int = 0) -> set[str]:
    """Return the top-level packages that a command loads; it must end with `code`."""
    command = [sys.executable, "-X", "importtime", "-m", "vinfinity", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("generate", "--help"), ("--version",)])
def test_help_loads_no_heavy_packages(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "typer" in loaded
    assert loaded.isdisjoint(
        {"torch", "omegaconf", "numpy", "av", "safetensors", "tokenizers", "huggingface_hub"}
    )


def test_refusals_come_before_torch_is_loaded(tmp_path: Path) -> None:
    for name in ("text.safetensors", "text.bin"):
        (tmp_path / name).write_text("no tensors")
    for wrong in (
        ("--out", "x.avi"),
        ("--frames", "0"),
        ("--model", "minni"),
        ("--decoder", "nowhere"),
        ("--frames", "010"),
        ("--lora", "nowhere.safetensors"),
        ("--lora", str(tmp_path / "text.safetensors")),
        ("--lora", str(tmp_path / "text.bin")),
        ("--lora", str(tmp_path)),
        ("edit.run=nowhere.run",),
        (f"edit.run={tmp_path}",),
        ("--out", f"{'x' * 252}.mp4"),
        ("--out", "a\nb.mp4"),
        ("frmes=3",),
    ):
        assert "torch" not in loaded_by("generate", "-p", "x", *wrong, code=2)


def test_conversions_are_checked_before_torch_is_loaded(tmp_path: Path) -> None:
    new = str(tmp_path / "new")
    for wrong in (("nowhere", new), (str(tmp_path), str(tmp_path)), (".", new, "--complete-from", "minni")):
        assert "torch" not in loaded_by("models", "convert", *wrong, code=2)


def test_videos_to_measure_are_checked_before_torch_and_opencv_are_loaded() -> None:
    for command in (
        ("evaluate", "nowhere.mp4"),
        ("evaluate", "README.md"),
        ("compare", "nowhere.mp4", "nowhere.mp4"),
        ("compare", "docs", "tests"),
    ):
        assert loaded_by(*command, code=2).isdisjoint({"torch", "cv2", "scenedetect"})


def test_the_configuration_needs_no_torch() -> None:
    assert loaded_by("config", "-c", "configs/long.yaml").isdisjoint(
        {"torch", "av", "diffusers", "transformers"}
    )
