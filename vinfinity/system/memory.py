"""The host's memory: its total, and what this process may still allocate."""

import os
from pathlib import Path

# files with the limit and the usage of a group's memory, and the entry of memory.stat for cached files
GROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
GROUP_V2 = ("memory.max", "memory.current", "inactive_file")


def free_on_host(*, sharing: int = 1) -> int:
    """Return the bytes that each of `sharing` ranks on this node can allocate, within the limits of control groups."""
    return min(_available(), free_in_group()) // max(sharing, 1)


def host_memory() -> int:
    """Return the host's total memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        # not Linux
        pass
    return host_memory()


def free_in_group(cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process's control groups, such as a SLURM job's, still allow; 2^63 without a limit."""
    free = 2**63
    try:
        lines = [line.split(":", 2) for line in cgroups.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return free
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        version, top = (GROUP_V1, root / "memory") if controllers else (GROUP_V2, root)
        own = top / path.strip("/")
        for group in (own, *own.parents):
            if group == root.parent:
                break
            try:
                limit, used = ((group / name).read_text(encoding="ascii").strip() for name in version[:2])
                if limit != "max":
                    free = min(free, int(limit) - int(used) + _reclaimable(group, version[2]))
            except (OSError, ValueError):
                # folders above the groups lack these files
                continue
    return max(free, 0)


def _reclaimable(group: Path, entry: str) -> int:
    """Return the bytes of cached files, which count towards the group's usage but are freed on demand."""
    for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
        name, _, size = line.partition(" ")
        if name == entry:
            return int(size)
    return 0
