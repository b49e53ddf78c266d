"""What Linux reports about the processor. Loads no torch."""

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def processor_entries(file: Path = CPUINFO) -> dict[str, str]:
    """Return the entries of the first core, such as `model name`; none on other systems."""
    entries: dict[str, str] = {}
    try:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            entries.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    return entries


def instruction_sets(file: Path = CPUINFO) -> frozenset[str]:
    """Return the processor's instruction sets by Linux's names, such as `avx2`."""
    entries = processor_entries(file)
    return frozenset((entries.get("flags") or entries.get("Features") or "").split())
