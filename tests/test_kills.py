"""SIGKILL at random instants of real runs; `make soak` does the same with 200 for each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kill_resume import CASES

pytestmark = pytest.mark.slow

KILLS = 4


def test_killed_runs_end_as_those_that_were_not():
    """One process for all cases, so that PyTorch is imported once."""
    script = Path(__file__).parent / "kill_resume.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", str(KILLS), "--seed", str(os.getpid())],
        capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [case["case"] for case in found] == list(CASES)
    assert all(case["kills"] == KILLS and case["runs_finished"] for case in found)
    assert not any(case["different"] for case in found)
