"""Memory and processors that a container leaves to this process."""

import os
from types import SimpleNamespace

import psutil
import pytest
import torch

from cktf.contrast import Footprint
from cktf.errors import MethodError
from cktf.machine import available_memory, usable_cpus

GB = 10**9


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Writes the files of control groups; the machine has 64 GB free and 16 processors."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def make(own, files):
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path / "cgroup", tmp_path / "own"

    return make


V2 = "0::/a/b\n"
V1 = "5:cpu,cpuacct:/a\n4:memory:/a/b\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("", {}, 64),
        (V2, {}, 64),
        (V2, {"a/b/memory.max": "max", "a/b/memory.current": 5 * GB}, 64),
        (V2, {"a/b/memory.max": 8 * GB, "a/b/memory.current": 5 * GB}, 3),
        (V2, {"a/b/memory.max": 8 * GB, "a/b/memory.current": 9 * GB}, 0),
        (V2, {"a/b/memory.max": 8 * GB}, 8),
        (V2, {"a/b/memory.max": "max", "a/b/memory.high": 4 * GB, "a/b/memory.current": GB}, 3),
        (V2, {"a/b/memory.max": "max", "a/memory.max": 7 * GB, "a/memory.current": GB}, 6),
        # A container sees its own group as the root.
        (V2, {"memory.max": 2 * GB, "memory.current": GB}, 1),
        ("0::/\n", {"memory.max": 2 * GB, "memory.current": GB}, 1),
        (
            V2,
            {
                "a/b/memory.max": 8 * GB, "a/b/memory.current": 5 * GB,
                "a/b/memory.stat": f"anon 1\ninactive_file {4 * GB}",
            },
            7,
        ),
        (V1, {"memory/a/b/memory.limit_in_bytes": 2**63 - 4096}, 64),
        (
            V1,
            {
                "memory/a/b/memory.limit_in_bytes": 3 * GB,
                "memory/a/b/memory.usage_in_bytes": 2 * GB,
                "memory/a/b/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB}",
            },
            2,
        ),
        (V1, {"memory/memory.limit_in_bytes": GB}, 1),
        (V2, {"a/b/memory.max": "garbage"}, 64),
    ],
)  # fmt: skip
def test_memory(container, own, files, free):
    assert available_memory(*container(own, files)) == free * GB


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        ("", {}, 16),
        (V2, {"a/b/cpu.max": "max 100000"}, 16),
        (V2, {"a/b/cpu.max": "250000 100000"}, 2),
        (V2, {"a/cpu.max": "20000 100000"}, 1),
        (V1, {"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": 300000, "cpu/cpu.cfs_period_us": 100000}, 3),
    ],
)
def test_processors(container, own, files, cpus):
    assert usable_cpus(*container(own, files)) == cpus


def test_contrast_asks_what_the_container_leaves(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=7))
    with pytest.raises(MethodError, match=r"cpu has 7\.0 B free"):
        Footprint(step=8).check(torch.device("cpu"))
