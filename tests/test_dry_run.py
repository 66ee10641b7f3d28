"""Dry runs: what two batches of a planned run report, and what they leave unchanged."""

import re

import pytest
import torch
import yaml
from small_runs import SmallNet
from torch import nn
from typer.testing import CliRunner

import cktf
from cktf.cli.main import app
from cktf.data import ImageSet
from cktf.errors import ModelError, TrainingError
from cktf.models import Normalized
from cktf.recipes import parse_recipe
from cktf.workflows import preview_run
from cktf.workflows.train import UserObjects, prepare


def dry_run(train, tmp_path, *, teacher=None, student=None, method="cktf+kd", **fields):
    torch.manual_seed(0)
    objects = UserObjects(teacher or SmallNet(width=16), student or SmallNet(), train, None)
    options = {"cktf": {"negatives": 64}} if "cktf" in method else {}
    recipe = parse_recipe(
        {"kind": "distill", "teacher": "custom", "student": "custom", "method": method,
         "data": {"name": "custom"}, "options": options, "epochs": 2} | fields
    )  # fmt: skip
    return preview_run(recipe, prepare(recipe, tmp_path / "run", objects)[1])


class PerfectTeacher(nn.Module):
    """A network that reads the label of an image from its first pixel."""

    def __init__(self):
        super().__init__()
        self.body = SmallNet(width=16)

    def forward(self, x):
        labels = nn.functional.one_hot((x[:, 0, 0, 0] * 20).round().long().clamp(0, 9), 10)
        return self.body(x) * 1e-3 + labels


def with_label_pixels(images):
    """Images whose first pixel holds the label, a twentieth for each."""
    pixels = images.images.permute(0, 3, 1, 2).float() / 255
    pixels[:, 0, 0, 0] = images.labels / 20
    return torch.utils.data.TensorDataset(pixels, images.labels)


class OutOfMemoryNet(SmallNet):
    """A network that runs out of memory in training."""

    def forward(self, x):
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def test_a_dry_run_reports_too_little_memory(images, tmp_path):
    with pytest.raises(TrainingError, match=r"for batches of 64 .*data\.batch_size=32"):
        dry_run(with_label_pixels(images[0]), tmp_path, student=OutOfMemoryNet(), method="kd")


def test_a_trained_student_is_advised_a_smaller_rate(images, tmp_path):
    """No advice where the rate is set, or the classifier alone is trained."""

    def advice(**fields):
        recipe = parse_recipe({"kind": "train", "epochs": 2, **fields})
        return preview_run(recipe, prepare(recipe, tmp_path / "new")[1]).advice

    done = cktf.teach(
        "resnet8", train="fashion-mini", epochs=1, out=tmp_path / "run", show=False,
        overrides={"data.per_class": 20},
    )  # fmt: skip
    data, rate = {"name": "fashion-mini", "per_class": 20}, "starts from trained weights"
    again = {"model": str(done.folder), "data": data}
    assert rate in advice(**again)[0]
    assert not advice(**again, optimizer={"lr": 0.01})
    assert not advice(**again, trains="classifier")
    assert not advice(model="resnet8", data=data)


def test_a_good_plan_has_no_warnings_and_changes_nothing(images, tmp_path):
    teacher, student = PerfectTeacher(), SmallNet()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    result = dry_run(with_label_pixels(images[0]), tmp_path, teacher=teacher, student=student)
    assert result.advice == []
    assert [list(t) for t in result.terms] == [
        ["ce", "cktf", "cktf.stem", "cktf.module1", "cktf.embedding", "kd"]
    ] * 2
    assert result.terms[0] != result.terms[1]
    assert result.gradient > 0
    assert (result.steps, result.epochs) == (15, 2)
    assert result.student.features.stages[0].shape == (64, 16, 8, 8)
    assert result.teacher.parameters > result.student.parameters
    assert "banks" in result.contrast
    assert result.step_seconds > 0
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in student.parameters())
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training
    assert not (tmp_path / "run").exists()


def subset(images, keep):
    return ImageSet(
        images.images[keep], images.labels[keep], images.classes, images.mean, images.std
    )


def frozen_student():
    student = SmallNet().requires_grad_(False)
    student.spare = nn.Parameter(torch.zeros(1))
    return student


def test_a_student_without_a_gradient_is_refused(images, tmp_path):
    with pytest.raises(ModelError, match="No gradient of the loss reaches the student SmallNet"):
        dry_run(images[0], tmp_path, student=frozen_student(), method="at")


@pytest.mark.parametrize(
    ("build_arguments", "words"),
    [
        (dict, "as by guessing"),
        (lambda: {"teacher": SmallNet(), "student": SmallNet(width=16)}, "wrong way round"),
        (lambda: {"teacher": SmallNet(7, width=16), "method": "cktf"},
         "tells 7 classes and the data has 10"),
    ],
    ids=["guessing teacher", "wrong way round", "other classes"],
)  # fmt: skip
def test_a_dry_run_warns(images, tmp_path, build_arguments, words):
    result = dry_run(images[0], tmp_path, **build_arguments())
    assert any(words in advice for advice in result.advice)


def test_classes_without_images(images, tmp_path):
    """Of the ten classes one is missing, another has a few images."""
    labels = images[0].labels
    few = (labels == 4) & ((labels == 4).cumsum(0) > 5)
    result = dry_run(subset(images[0], (labels != 3) & ~few), tmp_path)
    name = images[0].classes[3]
    assert any(f"1 of 10 classes have no training image ({name})" in a for a in result.advice)
    assert any("the smallest 5." in a for a in result.advice)


def test_the_input_of_a_network_is_described(images, tmp_path):
    teacher = Normalized(SmallNet(width=16), [0.5] * 3, [0.25] * 3, size=48)
    result = dry_run(images[0], tmp_path, teacher=teacher, method="kd")
    assert result.teacher.input == "3 x 48 x 48; mean 0.500 0.500 0.500, std 0.250 0.250 0.250"
    assert result.teacher.name == "SmallNet"


@pytest.mark.parametrize(
    "line", ["--teacher teacher --student resnet8", "distill --teacher teacher --student resnet8",
             "--model resnet8", "train --model resnet8"],
)  # fmt: skip
def test_doctor_reports_before_training(run_cli, cli_dir, line):
    result = run_cli(f"doctor {line} --epochs 3")
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(result.stdout)["epochs"] == 3
    output = re.sub(r"\s+", " ", result.stderr)
    assert re.search(r"A step takes [\d,]+ ms, an epoch of 156 steps .*, and 3 epochs", output)
    if "teacher" in line:
        assert output.count("64 x 8 x 8") == 2
        assert "The teacher is right on" in output
        assert "wrong way round" in output
    assert not (cli_dir / "runs").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [("--teacher teacher", "student"), ("train --model resnet9", "Did you mean"),
     ("distill --teacher none --student resnet8", "none"),
     ("doctor", "what 'doctor' is for")],
)  # fmt: skip
def test_doctor_of_a_mistake(run_cli, line, message):
    result = run_cli(f"doctor {line}")
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_doctor_helps():
    result = CliRunner().invoke(app, ["doctor", "distill", "--help"])
    assert result.exit_code == 0
    assert "--teacher-taps" in result.output
