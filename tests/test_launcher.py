"""What launchers and schedulers leave in the environment of a run, which is one process."""

import os
import subprocess
import sys

import pytest

from cktf.engine import RuntimeConfig, start_runtime
from cktf.errors import RecipeError, TrainingError

# Of one process: a scheduler's, an MPI's, and Accelerate's with plugins that are not installed.
ONE_PROCESS = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "OMPI_COMM_WORLD_SIZE": "1",
    "OMPI_COMM_WORLD_RANK": "0", "PMI_SIZE": "1", "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_USE_CPU": "1",
    "ACCELERATE_TORCH_DEVICE": "nonsense", "ACCELERATE_USE_SAGEMAKER": "true",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"]
)
@pytest.mark.parametrize("value", ["2", "nonsense"])
def test_several_processes_are_refused(monkeypatch, small_run, name, value):
    monkeypatch.setenv(name, value)
    words = f"A run is one process, .* {name}={value}. .* unset it"
    with pytest.raises(TrainingError, match=words):
        start_runtime(RuntimeConfig(device="cpu"))
    with pytest.raises(RecipeError, match=f"runtime: {words}"):
        small_run()


def test_accumulated_gradients_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(TrainingError, match=r"accumulates no gradients, .*STEPS=4"):
        start_runtime(RuntimeConfig(device="cpu"))


def test_variables_of_one_process_do_not_matter():
    """In a process of its own, since Accelerate reads them once."""
    code = (
        "import os, torch; from cktf.engine import RuntimeConfig, start_runtime\n"
        "before = dict(os.environ)\n"
        "device = start_runtime(RuntimeConfig(device='cpu')).device\n"
        "print(device, torch.distributed.is_initialized())\n"
        "assert dict(os.environ) == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | ONE_PROCESS, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == "cpu False\n", done.stderr
