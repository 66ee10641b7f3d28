"""Methods that initialize before the student is trained on the sum: through the same loop."""

import json

import pytest
import torch
from small_runs import SmallNet, equal_weights, read_metrics, student_weights

import cktf
from cktf.engine import Trainer
from cktf.errors import RecipeError

METHOD = "cktf+ab+ft"
STAGES = ["ab", "ab", "ft", "ft", "train", "train"]


def distill(images, out, method=METHOD, **more):
    torch.manual_seed(0)
    teacher, own = SmallNet(width=16), SmallNet()
    options = {"cktf": {"negatives": 64}} if "cktf" in method else {}
    options |= more.pop("options", {})
    return cktf.distill(
        teacher, own, train=images[0], test=images[1], method=method, epochs=2, out=out,
        options=options, show=False, overrides={"init_epochs": 2, "checkpoint.epochs": 1}, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    return distill(images, tmp_path_factory.mktemp("phases") / "whole")


def test_stages_are_recorded(whole):
    rows = read_metrics(whole.folder)
    assert [row["stage"] for row in rows] == STAGES
    assert [row["epoch"] for row in rows] == [1, 2, 1, 2, 1, 2]
    assert [list(row["terms"]) for row in rows[:4]] == [
        ["ab"],
        ["ab"],
        ["paraphraser"],
        ["paraphraser"],
    ]
    assert {"ce", "cktf", "ft"} <= set(rows[4]["terms"])
    assert "ab" not in rows[4]["terms"]
    assert [row["lr"] for row in rows[:4]] == [0.05, 0.05, 0.01, 0.01]
    assert ["test_top1" in row for row in rows] == [False] * 4 + [True] * 2
    # What a stage minimizes becomes smaller.
    assert rows[1]["loss"] < rows[0]["loss"]
    assert rows[3]["loss"] < rows[2]["loss"]
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["init_epochs"] == {"ab": 2, "ft": 2}
    assert summary["epochs"] == 2
    assert summary["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))


def test_each_stage_trains_what_is_its_own(images, tmp_path, monkeypatch):
    kept = []
    train = Trainer._train

    def state(trainer):
        modules = {"student": trainer.student, "objective": trainer.objective}
        return {
            f"{name}.{key}": value.clone()
            for name, module in modules.items()
            for key, value in module.state_dict().items()
        }

    def spy(self, stage, before, done):
        first = state(self)
        yield from train(self, stage, before, done)
        last = state(self)
        kept.append((stage.name, {key for key in first if not torch.equal(first[key], last[key])}))

    monkeypatch.setattr(Trainer, "_train", spy)
    distill(images, tmp_path / "run")
    (ab, in_ab), (ft, in_ft), (train_, in_train) = kept
    assert (ab, ft, train_) == ("ab", "ft", "train")
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


@pytest.mark.parametrize(
    "cut", [3, 6, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (2, 4, 5))]
)
def test_a_run_continues_from_within_every_stage(images, whole, tmp_path, monkeypatch, cut):
    epoch = Trainer._epoch

    def interrupted(self, stage, number, passes, progress):
        if passes == cut:
            raise KeyboardInterrupt
        return epoch(self, stage, number, passes, progress)

    monkeypatch.setattr(Trainer, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distill(images, tmp_path / "cut")
    monkeypatch.setattr(Trainer, "_epoch", epoch)
    continued = distill(images, tmp_path / "cut", resume=True)
    assert equal_weights(student_weights(whole), student_weights(continued))
    assert [row["stage"] for row in read_metrics(tmp_path / "cut")] == STAGES


def test_hints_first(images, tmp_path):
    run = distill(images, tmp_path / "run", "fitnet+kd", options={"fitnet": {"staged": True}})
    rows = read_metrics(run.folder)
    assert [row["stage"] for row in rows] == ["fitnet", "fitnet", "train", "train"]
    assert list(rows[-1]["terms"]) == ["ce", "kd"]


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
