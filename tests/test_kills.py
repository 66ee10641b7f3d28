"""SIGKILL at random instants of real runs; `make soak` does the same with 200 for each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lives import CASES

KILLS = 4


@pytest.fixture(scope="module")
def lives():
    script = Path(__file__).parent / "lives.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", str(KILLS), "--seed", str(os.getpid())],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return {found["case"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_one_that_was_not(lives, case):
    found = lives[case]
    assert found["kills"] == KILLS
    assert found["runs_finished"] >= 1
    assert found["different"] == [], found
