"""Shared fixtures. The tests run on one thread of the CPU in fp32, from fixed seeds."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# processes that tests start inherit this: with several threads each, they would slow each other down
os.environ.setdefault("OMP_NUM_THREADS", "1")
# plans depend on it; the command line switches it on, and tests call its functions, too
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles.command_line import Cli


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # shells start background jobs with Ctrl-C ignored, and nohup ignores SIGHUP: processes that tests start inherit it
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model in diffusers' layout, written by diffusers. Tests must not change it: see `own_model`."""
    from oracles.reference import save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def own_model(model_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of `model_folder` that the test may change."""
    from oracles.reference import copy_model

    return copy_model(model_folder, tmp_path / "model")


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], bool]:
    """Whether a file, or the entries of a folder, were flushed to disk during the test, under any name."""
    flush, flushed = os.fsync, set()

    def fsync(number: int) -> None:
        flush(number)
        flushed.add(os.fstat(number).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda path: path.stat().st_ino in flushed


@pytest.fixture
def record_worst(record_property: Callable[[str, object], None]) -> Callable[[str, float], None]:
    """Record a figure in the test report, and on the terminal with `-s`."""

    def note(name: str, value: float) -> None:
        record_property(name, value)
        print(f"{name}: {value:.2e}")

    return note


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run `vinfinity ARGUMENTS`."""
    return Cli(capsys)
