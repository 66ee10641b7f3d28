"""Runs that were stopped: what can be read before they are finished."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import distill_few, equal_weights, run_command, stop_after_steps

import cktf
from cktf.errors import CheckpointError, Interrupted, RunFolderError


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run of two epochs of five steps that was stopped after the sixth."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 6)
        with pytest.raises(Interrupted):
            cktf.teach(
                "resnet8", train="fashion-mini", epochs=2, out=path, show=False,
                overrides={"data.per_class": 20, "data.batch_size": 40},
            )  # fmt: skip
    return path


def test_the_student_of_the_last_checkpoint_is_evaluated(stopped):
    output = run_command(f"evaluate {stopped}")
    assert "is unfinished: this is its student after 1 epochs and 1 steps of 2" in output
    assert "of 5,000 test images" in output
    state = torch.load(max((stopped / "checkpoints").glob("*.pt")), weights_only=True)["student"]
    written = load_file(stopped / "unfinished.safetensors")
    assert equal_weights(
        written, {name.removeprefix("network."): state[name] for name in state if name[0] == "n"}
    )
    assert not (stopped / "summary.json").exists()
    # It does not count as finished: not as a teacher, and not for the run itself.
    with pytest.raises(CheckpointError, match="the run is unfinished"):
        cktf.recipes.find_weights_file(str(stopped))
    run_command(f"train --resume {stopped}")
    assert "unfinished" not in run_command(f"evaluate {stopped}")
    assert json.loads((stopped / "summary.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_the_student_of_the_last_checkpoint_is_exported(stopped):
    output = run_command(f"export {stopped}")
    assert "is unfinished: this is its student after 1 epochs and 1 steps of 2" in output
    assert (stopped / "student.onnx").is_file()


def test_networks_from_python_have_no_name(few_images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 3)
        with pytest.raises(Interrupted):
            distill_few(few_images, tmp_path / "run", method="kd")
    with pytest.raises(RunFolderError, match="is unfinished, and its student can be read"):
        cktf.evaluate(tmp_path / "run", "fashion-mini")
