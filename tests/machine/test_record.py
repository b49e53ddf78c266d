"""What run.json says of the machines of a run."""

import json
import platform
from pathlib import Path

import torch
from oracles.runs import config_of, events, resumed_config, stop_after_step

from vinfinity.run import run


def machine(folder: Path) -> dict[str, object]:
    record: dict[str, dict[str, object]] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return record["machine"]


def test_the_record_names_software_and_machine_from_the_start_and_after_a_resume(
    model_folder: Path, tmp_path: Path
) -> None:
    config, folder = (
        config_of(model_folder, tmp_path / "a.mp4", "checkpoint.every=1 steps"),
        tmp_path / "a.run",
    )
    stop_after_step(config, folder)
    found = machine(folder)
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert set(found) >= {"cuda", "cudnn", "nccl", "attention", "allocator"}
    assert isinstance(found["ranks"], list)
    (rank,) = found["ranks"]
    assert (rank["host"], rank["device"]) == (platform.node(), "cpu")
    assert rank["processor"]

    # as if the run had been started elsewhere
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**record, "machine": {}}), encoding="utf-8")
    run(resumed_config(folder))
    assert machine(folder) == found
    assert [event["machine"] for event in events(folder, "started")] == [found, found]


def test_every_rank_is_recorded(model_folder: Path, tmp_path: Path) -> None:
    run(config_of(model_folder, tmp_path / "a.mp4", gpus=2, steps=1))
    ranks = machine(tmp_path / "a.run")["ranks"]
    assert isinstance(ranks, list)
    assert [rank["host"] for rank in ranks] == [platform.node()] * 2
