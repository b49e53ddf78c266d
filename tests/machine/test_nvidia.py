"""The driver's view of GPUs, from an nvidia-smi that is a script."""

from pathlib import Path

import pytest
from oracles.machines import TOPOLOGY, card_line, install_nvidia_smi

from vinfinity.machine.nvidia import (
    Holder,
    Link,
    device_nodes,
    driver_version,
    find_nvidia,
    kernel_module,
    parse_topology,
    pci_gpus,
)
from vinfinity.machine.probe import ProbeError

OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs@b)\n"
MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC: 12\n"


def test_gpus_driver_links_and_processes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holders = "GPU-11, 4242, 30000, /usr/bin/python3\nGPU-11, 4243, [N/A], /opt/a, b\n"
    path = install_nvidia_smi(tmp_path, *map(card_line, range(3)), holders=holders.strip())
    monkeypatch.setenv("PATH", path)
    found = find_nvidia()
    assert found is not None
    assert (found.driver, found.cuda, found.usable) == ("550.54.15", "12.4", 3)
    first, second, _ = found.cards
    assert (first.name, first.memory, first.pcie) == ("NVIDIA A100-SXM4-80GB", 81920 * 2**20, "PCIe 4 x16")
    assert (first.holders, first.compute_mode) == ((), "Default")
    assert second.holders == (Holder(4242, "python3", 30000 * 2**20), Holder(4243, "a, b", None))
    assert found.links == (Link(0, 1, "NV12"), Link(0, 2, "SYS"), Link(1, 2, "SYS"))


def test_values_that_the_driver_does_not_have_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "0, NVIDIA H100 MIG, GPU-00, [N/A], [N/A], 550.54.15, [N/A], [N/A], Default"
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, line))
    found = find_nvidia()
    assert found is not None
    assert (found.cards[0].memory, found.cards[0].free, found.cards[0].pcie) == (None, None, "")


@pytest.mark.parametrize(
    "message",
    [
        "Failed to initialize NVML: Driver/library version mismatch",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
    ],
)
def test_a_driver_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, fails=message.replace("'", "")))
    with pytest.raises(ProbeError, match=message[:25]):
        find_nvidia()


def test_words_in_place_of_gpus_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, "Unable to determine the device handle"))
    with pytest.raises(ProbeError, match="Unable to determine"):
        find_nvidia()


def test_no_devices_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, "No devices were found"))
    assert find_nvidia() is None


def test_a_matrix_that_cannot_be_read_has_no_links() -> None:
    assert parse_topology("") == parse_topology("no topology here\n") == ()
    assert len(parse_topology(TOPOLOGY)) == 3


def test_the_driver_is_known_without_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text, version in (("open", OPEN_MODULE, "580.65.06"), ("closed", MODULE, "550.54.15")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert kernel_module(tmp_path / name) == version
    assert kernel_module(tmp_path / "none") == ""
    monkeypatch.setenv("PATH", install_nvidia_smi(tmp_path, "550.54.15"))
    assert driver_version() in ("550.54.15", kernel_module())


def test_gpus_are_counted_on_the_bus_and_among_the_device_files(tmp_path: Path) -> None:
    for slot, (vendor, kind) in enumerate(
        [("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x1002", "0x030000")]
    ):
        device = tmp_path / "bus" / str(slot)
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n", encoding="ascii")
        (device / "class").write_text(f"{kind}\n", encoding="ascii")
    assert pci_gpus(tmp_path / "bus") == 1
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert device_nodes(tmp_path) == 2
