"""Processes that share one piece of work."""

import os
from pathlib import Path

import pytest
import torch

from cktf.bench.worker_processes import run_in_processes


def write_visible_gpu(folder: Path) -> None:
    """What a process is told before it imports anything."""
    (folder / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "before", "expected"),
    [(2, None, ["0", "1"]), (4, "5,7", ["5", "7"]), (1, None, ["none"] * 2), (0, "", [""] * 2)],
)
def test_each_process_starts_with_a_gpu_of_its_own(count, before, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    run_in_processes(write_visible_gpu, tmp_path, jobs=2, folder=tmp_path)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == expected
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
