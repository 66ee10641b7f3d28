"""What trackers are told of a run, and that they cannot hurt it."""

import json
from typing import ClassVar

import pytest
from accelerate import tracking as accelerates
from small_runs import distill
from typer.testing import CliRunner

import cktf
from cktf.cli.main import app
from cktf.engine import tracking
from cktf.errors import RecipeError


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_has_what_the_record_has(images, tmp_path):
    """By default, and terms by name."""
    run = distill(images, tmp_path / "run", method="kd")
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    found = scalars(run.folder / "tensorboard")
    for tag, values in {
        "loss/kd": [row["terms"]["kd"] for row in rows],
        "loss": [row["loss"] for row in rows],
        "test_top1": [row["test_top1"] for row in rows],
    }.items():
        assert [step for step, _ in found[tag]] == [1, 2]
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-5)


def test_none(images, student, tmp_path):
    run = cktf.teach(
        student, train=images[0], test=images[1], epochs=1, out=tmp_path / "run", show=False,
        overrides={"runtime.track": "none"},
    )  # fmt: skip
    assert not (run.folder / "tensorboard").exists()


class Told(accelerates.GeneralTracker):
    """A tracker of Accelerate's form, which fails at its second row."""

    name, requires_logging_directory = "told", False
    made: ClassVar = []

    def __init__(self, run_name):
        super().__init__()
        self.rows, self.config, self.ended = [], None, False
        Told.made.append(self)

    @property
    def tracker(self):
        return self

    def start(self):
        self.started = True

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self.rows.append((step, values))
        if len(self.rows) == 2:
            raise ConnectionError("no network")

    def finish(self):
        self.ended = True


def test_a_tracker_that_fails_does_not_end_a_run(images, student, tmp_path, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "told", Told)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["told"])
    run = cktf.teach(
        student, train=images[0], test=images[1], epochs=3, out=tmp_path / "run", show=False,
        overrides={"runtime.track": ["told"]},
    )  # fmt: skip
    (told,) = Told.made
    assert told.config["optimizer.lr"] == 0.1
    assert [step for step, _ in told.rows] == [1, 2]
    assert "told is left out from here: no network" in (run.folder / "log.txt").read_text()
    assert run.summary["epochs"] == 3


def test_a_tracker_that_is_not_there(images, student, tmp_path, monkeypatch):
    """Is told before training, unless it is only the default."""
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    assert tracking.available_trackers(None) == []
    for name, message in (("wandb", "pip install wandb"), ("wand", "Did you mean 'wandb'")):
        with pytest.raises(RecipeError, match=message):
            cktf.teach(
                student, train=images[0], epochs=1, out=tmp_path / "run",
                overrides={"runtime.track": [name]},
            )  # fmt: skip
    line = ["train", "--model", "resnet8", "--track", "mlflow", "--out", str(tmp_path / "run")]
    failed = CliRunner().invoke(app, line)
    assert failed.exit_code == 2
    assert "pip install mlflow" in failed.output
    assert not (tmp_path / "run").exists()
