"""Helpers for tests of whole runs: start one, stop it, and read what it left on disk."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.reference import configure
from safetensors.torch import load_file, save_file
from torch import Tensor

from vinfinity.cli import main
from vinfinity.config import RunConfig
from vinfinity.errors import Stopped
from vinfinity.run import run
from vinfinity.runs.derived import load_run
from vinfinity.runs.folder import find_run
from vinfinity.runs.parts import read_manifest
from vinfinity.runs.paths import Destination
from vinfinity.runs.start import how_to_start
from vinfinity.system.signals import Shutdown

# enough for a signal to arrive before the last step
STEPS = 12


def config_of(model: Path | str, out: Path | str, *overrides: str, **flags: Any) -> RunConfig:
    """Return the configuration of a short run on the CPU."""
    return configure(
        model, *overrides, **{"out": str(out), "device": "cpu", "dtype": "fp32", "steps": STEPS, **flags}
    ).config


def resumed_config(folder: Path, *overrides: str, **flags: Any) -> RunConfig:
    """Return the configuration with which `vinfinity resume FOLDER` continues a run."""
    return load_run(find_run(folder), overrides=[*overrides], flags={"resume": True, **flags}).config


def start_of(config: RunConfig) -> str:
    """Whether a run with this configuration is new, resumes, or is done."""
    return how_to_start(config, Destination.of(config))


def latents(folder: Path) -> Tensor:
    """Return the final latents of a run, (c, f, h, w)."""
    parts = read_manifest(folder / "latents")
    return parts.read(range(parts.frames))


def latents_on(model: Path | str, folder: Path, *overrides: str, ranks: int, **flags: object) -> Tensor:
    """Return the latents of a whole run on `ranks` ranks, (1, c, f, h, w); its video is FOLDER/RANKS.mp4."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{ranks}.safetensors"
    given = {
        "out": str(folder / f"{ranks}.mp4"),
        "save_latents": str(file),
        "device": "cpu",
        "overwrite": True,
    }
    resolved = configure(model, *overrides, **{**given, "gpus": ranks, **flags})
    run(resolved.config)
    return load_file(file)["latents"]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the events of one kind in events.jsonl."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def manifest_of_step(folder: Path, step: int) -> Path:
    """Return the file that completes the checkpoint after a step."""
    return folder / "checkpoints" / f"step-{step:04d}" / "manifest.json"


@contextlib.contextmanager
def when_exists(path: Path, action: Callable[[], object]) -> Iterator[None]:
    """Inside the block, call `action` in another thread as soon as `path` exists."""

    def watch() -> None:
        while not path.exists() and not ended.is_set():
            time.sleep(0.0005)
        if not ended.is_set():
            action()

    ended = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def signal_when_exists(
    path: Path, number: signal.Signals = signal.SIGTERM
) -> contextlib.AbstractContextManager[None]:
    """Inside the block, send this process a signal as soon as `path` exists."""
    return when_exists(path, lambda: os.kill(os.getpid(), number))


def stop_after_step(
    config: RunConfig, folder: Path, *, step: int = 3, number: signal.Signals = signal.SIGTERM
) -> str:
    """Run until the checkpoint after a step exists, then stop with a signal; the message of the run."""
    with (
        Shutdown().handled() as shutdown,
        signal_when_exists(manifest_of_step(folder, step), number),
        pytest.raises(Stopped) as raised,
    ):
        run(config, shutdown=shutdown)
    assert raised.value.exit_code == 75
    return raised.value.message


def exit_code(*arguments: str) -> int | str | None:
    """Return the exit code of `vinfinity ARGUMENTS`, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def truncate(path: Path) -> None:
    """Cut off the end of a file."""
    path.write_bytes(path.read_bytes()[:-7])


def flip_bit(path: Path) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)


def make_nan(folder: Path) -> None:
    """Replace the weights in a folder by NaN."""
    [path] = folder.glob("*.safetensors")
    tensors = {name: torch.full_like(x, float("nan")) for name, x in load_file(path).items()}
    # a run may look at the folder at this very moment
    unfinished = path.with_name(f"{path.name}.part")
    save_file(tensors, unfinished)
    unfinished.replace(path)
