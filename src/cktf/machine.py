"""Memory and processors that this process may use, which a container may limit.

Linux limits a process by its control group and by those above it (man 7 cgroups). A container sees
its own group as the root of the file system that is mounted at /sys/fs/cgroup.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def available_memory(cgroups: Path = _CGROUPS, own_groups: Path = _OWN_GROUPS) -> int:
    """Bytes of memory that are free, by the system and by the limits of every control group.

    Args:
        cgroups: where control groups are mounted.
        own_groups: the list of this process's groups.
    """
    free = int(psutil.virtual_memory().available)
    for group in _groups("memory", cgroups, own_groups):
        limits = ("memory.max", "memory.high", "memory.limit_in_bytes")
        limit = min((n for n in map(_read_number, map(group.joinpath, limits)) if n), default=None)
        used = _read_number(group / "memory.current") or _read_number(
            group / "memory.usage_in_bytes"
        )
        if limit is not None:
            # Pages of files that were not read lately make room.
            free = min(free, max(0, limit - max(0, (used or 0) - _inactive_file_bytes(group))))
    return free


def usable_cpus(cgroups: Path = _CGROUPS, own_groups: Path = _OWN_GROUPS) -> int:
    """Number of processors that this process may keep busy, 1 or more; see `available_memory`."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", cgroups, own_groups):
        quota = _read_number(group / "cpu.cfs_quota_us")
        period = _read_number(group / "cpu.cfs_period_us")
        with suppress(OSError, ValueError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
        if quota and period:
            cpus = min(cpus, max(1, quota // period))
    return cpus


def _groups(controller: str, cgroups: Path, own_groups: Path) -> Iterator[Path]:
    """Folders of this process's group and of those above it, of both versions of control groups."""
    lines: list[str] = []
    with suppress(OSError):
        lines = own_groups.read_text().splitlines()
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 1 has a tree for each controller, version 2 one tree for all of them.
        root = cgroups / controller if controllers else cgroups
        path = root / own.strip("/")
        yield path
        yield from (parent for parent in path.parents if parent.is_relative_to(root))


def _read_number(path: Path) -> int | None:
    """A positive number in a file; None if there is no such file, or no limit in it."""
    with suppress(OSError, ValueError):
        number = int(path.read_text())
        return number if number > 0 else None
    return None


def _inactive_file_bytes(group: Path) -> int:
    with suppress(OSError, ValueError):
        words = (group / "memory.stat").read_text().split()
        statistics = dict(zip(words[::2], words[1::2], strict=False))
        name = "total_inactive_file" if "total_inactive_file" in statistics else "inactive_file"
        return int(statistics.get(name, 0))
    return 0
