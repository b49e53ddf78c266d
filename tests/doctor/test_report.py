"""The doctor's screen and its JSON, for machines that are not here."""

import json
from typing import Any

import pytest
from oracles.machines import GB, cpu_engine, engine, gpu, machine, nvidia

from vinfinity.doctor.faults import diagnose
from vinfinity.doctor.report import as_json, here, used, wrong
from vinfinity.machine.engine import Attention, Use
from vinfinity.machine.nvidia import Link
from vinfinity.machine.probe import Failed
from vinfinity.parallel.place import Place

EVERYTHING_FAILED = dict.fromkeys(
    (
        "system",
        "processor",
        "memory",
        "shared_memory",
        "folders",
        "network",
        "nvidia",
        "engine",
        "video",
        "models",
        "place",
    ),
    Failed("why it failed"),
)


def test_equal_gpus_take_one_line() -> None:
    rows = dict(here(machine(engine=engine(8), nvidia=nvidia(8))))
    assert rows["GPUs"] == "8 x NVIDIA H100 80GB HBM3, 85 GB, 84 GB free, compute capability 9.0, PCIe 5 x16"
    assert rows["driver"] == "580.65.06, for CUDA up to 13.0"
    assert rows["links"] == "NV18 between all pairs"
    assert rows["torch"].startswith("2.13.0+cu130, CUDA 13.0, cuDNN 9.15.1, NCCL 2.28.9, Triton 3.7.0")


def test_unequal_gpus_and_links_are_listed_by_kind() -> None:
    links = (Link(0, 1, "NV4"), Link(0, 2, "SYS"), Link(1, 2, "SYS"))
    gpus = (gpu(0), gpu(1, free=12 * GB), gpu(2, name="NVIDIA L40S", capability="8.9", memory=48 * GB))
    rows = here(machine(engine=engine(gpus=gpus), nvidia=nvidia(3, links=links)))
    assert [text.partition(",")[0] for name, text in rows if name == "GPUs"] == [
        "2 x NVIDIA H100 80GB HBM3",
        "1 x NVIDIA L40S",
    ]
    assert "12 to 84 GB free" in dict(reversed(rows))["GPUs"]
    assert dict(rows)["links"] == "NV4 0-1; SYS 0-2, 1-2"


def test_gpus_that_torch_does_not_see_are_shown() -> None:
    rows = dict(here(machine(engine=cpu_engine())))
    assert rows["GPUs"] == "2 x NVIDIA H100 80GB HBM3; torch sees none of them"
    rows = dict(here(machine(engine=cpu_engine(), nvidia=nvidia(0))))
    assert rows["driver"] == "580.65.06, for CUDA up to 13.0; no GPU is passed on to this process"


def test_a_run_on_gpus_is_described() -> None:
    assert used(machine(engine=engine(8))) == [
        ("device", "cuda:0, NVIDIA H100 80GB HBM3"),
        ("dtype", "fp16"),
        ("ranks", "1; --gpus 8 uses all GPUs"),
        ("attention", "efficient for temporal, flash for spatial attention"),
        ("allocator", "expandable_segments:True"),
    ]
    rows = dict(used(machine(engine=engine(8), gpus=8)))
    assert (rows["device"], rows["ranks"]) == ("cuda:0 to cuda:7", "8")


def test_a_run_of_a_launcher_is_described() -> None:
    place = Place(3, 16, 3, 8, "n0", 29500, launcher="torchrun")
    facts = machine(engine=engine(8), place=place)
    assert dict(here(facts))["launcher"] == "torchrun: rank 3 of 16, local 3 of 8, at n0:29500"
    assert dict(used(facts))["ranks"] == "16"


def test_threads_are_shown_on_the_cpu_only() -> None:
    assert dict(used(machine(engine=cpu_engine())))["threads"] == "16"
    assert dict(used(machine(engine=cpu_engine(), gpus=2)))["threads"] == "16 for each rank"


def test_all_that_failed_is_said_to_have_failed() -> None:
    facts = machine(**EVERYTHING_FAILED)
    rows = dict(here(facts))
    failed = [name for name, text in rows.items() if "not known: why it failed" in text]
    assert failed == [
        "system",
        "processor",
        "memory",
        "disk",
        "driver",
        "torch",
        "video",
        "models",
        "network",
        "launcher",
    ]
    assert used(facts) == [("device", "not known, since torch cannot be used")]
    found = as_json(facts, diagnose(facts))
    assert found["here"]["engine"] == found["here"]["nvidia"] == {"failed": "why it failed"}
    json.dumps(found)


@pytest.mark.parametrize("use", [Failed("no"), Use("", "", None, 0, "gpus: too many; fewer")])
def test_a_run_that_would_be_refused_is_not_described(use: Any) -> None:
    facts = machine(engine=engine(use=use))
    assert [name for name, _ in used(facts)] == ["device"]
    json.dumps(as_json(facts, diagnose(facts)))


def test_the_json_has_everything_and_says_what_stops() -> None:
    facts = machine(models=(), gpus=2)
    found = as_json(facts, diagnose(facts))
    assert list(found) == ["here", "asked", "used", "wrong", "stops"]
    assert found["asked"] == {"gpus": 2, "device": "auto"}
    assert found["used"]["attention"] == {"temporal": "efficient", "spatial": "flash"}
    assert (found["used"]["ranks"], found["used"]["device"]) == (2, "cuda")
    assert found["here"]["engine"]["gpus"][1]["name"] == "NVIDIA H100 80GB HBM3"
    assert found["here"]["engine"]["versions"]["cudnn"] == "9.15.1"
    assert [fault["name"] for fault in found["wrong"]] == ["models"]
    assert found["stops"] is True
    json.dumps(found)


def test_attention_that_could_not_be_asked_for_is_shown_as_such() -> None:
    use = Use("cuda", "fp16", Failed("no"), 1, "")
    assert dict(used(machine(engine=engine(use=use))))["attention"] == "not known: no"
    assert Attention("math", "flash") != Attention("flash", "math")


def test_faults_are_labelled() -> None:
    rows = wrong(diagnose(machine(models=(), variables={"NCCL_P2P_DISABLE": "1"})))
    assert [label for label, _ in rows] == ["error", "warning"]
