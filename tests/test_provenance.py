"""What computed a result: the commit, the processor, its bfloat16, the threads, the versions."""

import importlib.metadata
import subprocess
from pathlib import Path

import torch

from cktf.engine import environment
from cktf.functional.precision import has_fast_bfloat16

CPU = torch.device("cpu")


def test_a_record_names_code_machine_and_versions():
    record = environment(CPU, torch.float32)
    assert record["precision"] == "float32"
    assert record["bfloat16"] is None
    assert record["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["versions"]["accelerate"] == importlib.metadata.version("accelerate")
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert all(f" {flag} " in known.replace("\n", " ") for flag in record["cpu_flags"])
    assert ("avx2" in record["cpu_flags"]) == (" avx2 " in known)


def test_bfloat16_is_multiplied_or_emulated():
    expected = "multiplied" if has_fast_bfloat16(CPU) else "emulated"
    assert environment(CPU, torch.bfloat16)["bfloat16"] == expected


def test_the_commit_is_that_of_the_checkout():
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    commit = environment(CPU, torch.float32)["commit"]
    if found.returncode:
        assert commit is None
    else:
        assert commit.removesuffix("-dirty") == found.stdout.strip()
