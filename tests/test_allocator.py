"""Freed memory stays with a process that trains on the CPU."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import pytest

from cktf.engine import allocator, memory

# Pages that the system maps while tensors of 8 and of 64 MiB come and go.
PAGES = """
import json, resource, torch
from cktf.engine import RuntimeConfig, start_runtime
from cktf.engine.allocator import keep_freed_memory

def pages():
    def step():
        many = [torch.ones(2 << 20) for _ in range(4)]
        large = torch.ones(16 << 20)
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(), step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = pages()
start_runtime(RuntimeConfig(device="cpu"))
# The heap may still grow once, and a system short of memory takes pages back.
print(json.dumps([before, min(pages() for _ in range(3)), keep_freed_memory()]))
"""


PEAK = """
import json, torch
from cktf.engine.memory import reset_peak_memory, peak_memory_mb

cpu, found = torch.device("cpu"), []
for numbers in (64 << 20, 16 << 20):
    reset_peak_memory(cpu)
    before = peak_memory_mb(cpu)
    torch.ones(numbers)
    found.append(peak_memory_mb(cpu) - before)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not memory._RESET_PEAK.exists() or not memory._STATUS.exists(), reason="Linux can forget"
)
def test_a_peak_is_of_one_run() -> None:
    """256 MiB of the first are not the second's, which holds 64."""
    done = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == [pytest.approx(256, abs=8), pytest.approx(64, abs=8)]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own setting")
def test_a_step_takes_the_memory_of_the_step_before() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in allocator.CHOSEN_BY}
    done = subprocess.run(
        [sys.executable, "-c", PAGES], env=environment, check=True, capture_output=True, text=True
    )
    before, after, kept = json.loads(done.stdout)
    assert kept
    # 96 MiB in each of two steps are more than 40,000 pages of 4 KiB, or 90 of 2 MiB.
    assert before >= 40
    assert after <= before / 10


@pytest.mark.parametrize("name", allocator.CHOSEN_BY)
def test_the_environment_goes_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(ctypes, "CDLL", _opened)
    assert not allocator.keep_freed_memory.__wrapped__()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", _opened)
    assert not allocator.keep_freed_memory.__wrapped__()


def _opened(name: object) -> None:
    pytest.fail("the C library was opened")
