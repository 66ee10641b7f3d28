"""Methods that initialize before the student is trained on the sum: through the same loop."""

import json

import pytest
import torch
from small_runs import distill_few, equal_weights, read_metrics, student_weights

import cktf
from cktf.engine import Trainer
from cktf.errors import RecipeError

METHOD = "cktf+ab+ft"
PHASES = ["ab", "ab", "ft", "ft", "train", "train"]


def distill_phases(data, out, method=METHOD, **more):
    """Distill with two epochs for each phase and a checkpoint after each."""
    overrides = {"init_epochs": 2, "checkpoint.epochs": 1}
    return distill_few(data, out, method=method, overrides=overrides, **more)


@pytest.fixture(scope="module")
def whole(few_images, tmp_path_factory):
    return distill_phases(few_images, tmp_path_factory.mktemp("phases") / "whole")


def test_phases_are_recorded(whole):
    rows = read_metrics(whole.folder)
    assert [row["phase"] for row in rows] == PHASES
    assert [row["epoch"] for row in rows] == [1, 2, 1, 2, 1, 2]
    assert [list(row["terms"]) for row in rows[:4]] == [["ab"]] * 2 + [["paraphraser"]] * 2
    assert {"ce", "cktf", "ft"} <= set(rows[4]["terms"])
    assert "ab" not in rows[4]["terms"]
    assert [row["lr"] for row in rows[:4]] == [0.05, 0.05, 0.01, 0.01]
    assert ["test_top1" in row for row in rows] == [False] * 4 + [True] * 2
    # The loss of a phase falls.
    assert rows[1]["loss"] < rows[0]["loss"]
    assert rows[3]["loss"] < rows[2]["loss"]
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["init_epochs"] == {"ab": 2, "ft": 2}
    assert summary["epochs"] == 2
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))


class ChangedTensors(cktf.Callback):
    """Names of what each phase changes in the student and the objective."""

    def __init__(self):
        self.names = {}

    def on_phase_start(self, trainer):
        self.before = self.state(trainer)

    def on_epoch_end(self, trainer, row):
        if trainer.epoch == trainer.phase.epochs:
            after = self.state(trainer)
            changed = {key for key in after if not torch.equal(self.before[key], after[key])}
            self.names[trainer.phase.name] = changed

    @staticmethod
    def state(trainer):
        modules = {"student": trainer.student, "objective": trainer.objective}
        return {
            f"{name}.{key}": value.clone()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }


def test_each_phase_trains_its_own_parameters(few_images, tmp_path):
    changed = ChangedTensors()
    distill_phases(few_images, tmp_path / "run", callbacks=[changed])
    assert list(changed.names) == ["ab", "ft", "train"]
    in_ab, in_ft, in_train = changed.names.values()
    assert {k for k in in_ab if k.startswith("objective")} == {
        k for k in in_ab if ".ab.connectors." in k
    }
    assert "student.a.0.weight" in in_ab
    assert "student.fc.weight" not in in_ab
    assert in_ft
    assert all(".ft.paraphraser." in k for k in in_ft)
    assert "student.fc.weight" in in_train
    assert "objective.terms.ft.translator.0.weight" in in_train
    assert not [k for k in in_train if "paraphraser" in k or ".ab." in k]


@pytest.mark.parametrize("cut", [2, 3, 4, 5, 6])
def test_a_run_continues_from_within_every_phase(few_images, whole, tmp_path, monkeypatch, cut):
    start_epoch = Trainer.start_epoch

    def interrupted(self, number):
        if number == cut:
            raise KeyboardInterrupt
        start_epoch(self, number)

    monkeypatch.setattr(Trainer, "start_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill_phases(few_images, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "start_epoch", start_epoch)
    continued = distill_phases(few_images, tmp_path / "cut", resume=True)
    assert equal_weights(student_weights(whole), student_weights(continued))
    assert [row["phase"] for row in read_metrics(tmp_path / "cut")] == PHASES


def test_hints_first(few_images, tmp_path):
    run = distill_phases(
        few_images, tmp_path / "run", "fitnet+kd", options={"fitnet": {"staged": True}}
    )
    rows = read_metrics(run.folder)
    assert [row["phase"] for row in rows] == ["fitnet", "fitnet", "train", "train"]
    assert list(rows[-1]["terms"]) == ["ce", "kd"]


def test_the_weight_of_a_method_scales_the_gradient_of_its_phase(few_images, tmp_path):
    """Of a first step: the loss is recorded without it."""
    data = [few_images[0].subset(torch.arange(40)), few_images[1]]
    first, tripled = (
        read_metrics(distill_few(data, tmp_path / name, method=name, epochs=1).folder)[0]
        for name in ("ab:1+kd", "ab:3+kd")
    )
    assert first["phase"] == "ab"
    assert tripled["loss"] == first["loss"]
    assert tripled["gradient_norm"] == pytest.approx(3 * first["gradient_norm"], rel=1e-4)


def test_an_eighth_of_the_epochs_by_default():
    from cktf.recipes import parse_recipe

    fields = {"kind": "distill", "teacher": "custom", "student": "custom"}
    found = {n: parse_recipe(fields | {"epochs": n}).init_epochs for n in (1, 8, 30, 240)}
    assert found == {1: 1, 8: 1, 30: 4, 240: 30}
    with pytest.raises(RecipeError, match="init_epochs"):
        parse_recipe(fields | {"init_epochs": 0})


def test_the_learning_rate_depends_on_the_schedule():
    from cktf.recipes import parse_recipe

    fields = {"kind": "train", "model": "resnet8"}
    assert parse_recipe(fields).optimizer.lr == 0.1
    multistep = {"schedule": {"name": "multistep"}}
    assert parse_recipe(fields | multistep).optimizer.lr == 0.05
    assert parse_recipe(fields | multistep | {"optimizer": {"lr": 0.3}}).optimizer.lr == 0.3
