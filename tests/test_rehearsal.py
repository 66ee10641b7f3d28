"""The rehearsal before a run: what fails in training is told before anything is written."""

import math

import pytest
import torch
from small_runs import (
    CustomNet,
    SmallNet,
    copy_state,
    distill_few,
    equal_weights,
    student_weights,
)
from torch import nn
from torch.ao import quantization

import cktf
from cktf.engine import TrainPhase, TrainStep
from cktf.errors import ModelError, TrainingError
from cktf.objectives.cross_entropy import CrossEntropy
from cktf.recipes import parse_recipe
from cktf.taps import FeaturePaths, Tap
from cktf.workflows import UserObjects, prepare
from cktf.workflows.rehearsal import rehearse


def decorated(decorator):
    """A network whose forward runs under a decorator."""

    class Decorated(SmallNet):
        forward = decorator(SmallNet.forward)

    return Decorated()


def after(function):
    """A network whose logits go through a function."""
    return CustomNet(lambda self, x: function(self.body(x)), body=SmallNet())


@pytest.mark.parametrize(
    ("build_student", "method"),
    [
        (lambda: decorated(torch.no_grad()), "kd"),
        (lambda: decorated(torch.no_grad()), "cktf+kd"),
        (lambda: decorated(torch.inference_mode()), "kd"),
        (lambda: after(torch.detach), "kd"),
        (lambda: after(torch.round), "kd"),
        (lambda: after(lambda logits: torch.tensor(logits.tolist())), "kd"),
    ],
    ids=["no_grad", "no_grad, CKTF", "inference_mode", "detach", "round", "tolist"],
)
def test_a_student_that_no_gradient_reaches_is_refused(few_images, tmp_path, build_student, method):
    with pytest.raises(ModelError, match="No gradient of the loss reaches the student"):
        distill_few(few_images, tmp_path / "run", student=build_student(), method=method)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_is_rehearsed_too(interrupted_run, few_images, tmp_path):
    interrupted_run(2)
    with pytest.raises(ModelError, match="No gradient of the loss reaches"):
        distill_few(
            few_images, tmp_path / "run", student=decorated(torch.no_grad()), method="kd",
            resume=True,
        )  # fmt: skip


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_run_inside_no_grad_trains_as_outside(small_run, context):
    outside = small_run("outside", method="cktf+kd")
    torch.manual_seed(0)
    networks = {"teacher": SmallNet(width=16), "student": SmallNet()}
    with context():
        inside = small_run("inside", method="cktf+kd", **networks)
    assert equal_weights(student_weights(outside), student_weights(inside))


def test_named_networks_train_inside_inference_mode(tmp_path):
    with torch.inference_mode():
        run = cktf.teach(
            "resnet8", train="fashion-mini", epochs=1, out=tmp_path / "run", show=False,
            overrides={"data.per_class": 8},
        )  # fmt: skip
    assert run.summary["epochs"] == 1


def test_a_step_that_moves_nothing_is_refused(few_images, tmp_path):
    with pytest.raises(TrainingError, match="changed no parameter that trains"):
        distill_few(
            few_images, tmp_path / "run", method="kd",
            student=nn.Sequential(
                nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(8, 10, bias=False),
            ),
            overrides={"optimizer.lr": 1e-20, "optimizer.weight_decay": 0},
        )  # fmt: skip
    assert not (tmp_path / "run" / "summary.json").exists()


class LearnsOnce(SmallNet):
    """A network that runs without a gradient after its first training step."""

    steps = 0

    def forward(self, x):
        self.steps += self.training
        with torch.set_grad_enabled(self.steps <= 2):
            return super().forward(x)


def test_a_gradient_that_is_lost_later_is_an_error(few_images, tmp_path):
    with pytest.raises(TrainingError, match="The loss has no gradient any more"):
        distill_few(few_images, tmp_path / "run", method="kd", student=LearnsOnce())


def test_lazy_layers_have_weights_when_they_are_checked(few_images, tmp_path):
    lazy = CustomNet(lambda self, x: self.fc(x.mean((2, 3))), fc=nn.LazyLinear(10))
    run = distill_few(few_images, tmp_path / "run", method="kd", student=lazy)
    assert run.summary["student_parameters"] == 40


def with_nan(network, name):
    network.get_parameter(name).data.view(-1)[0] = math.nan
    return network


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (
            {"teacher": with_nan(SmallNet(width=16), "fc.weight")},
            r"teacher SmallNet has NaN .*fc.w",
        ),
        ({"student": with_nan(SmallNet(), "a.0.weight")}, r"student SmallNet has NaN .*a\.0\.weig"),
        ({"teacher": after(lambda x: (x - x).log())}, "teacher CustomNet gives NaN .*logits"),
        ({"student": after(lambda x: x / 0)}, "student CustomNet gives NaN .*logits"),
    ],
    ids=["teacher's weights", "student's weights", "teacher's outputs", "student's outputs"],
)
def test_nan_is_named_before_training(few_images, tmp_path, networks, message):
    with pytest.raises(ModelError, match=message):
        distill_few(few_images, tmp_path / "run", method="kd", **networks)
    assert not (tmp_path / "run").exists()


def quantization_aware():
    network = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(), nn.Linear(8, 10), quantization.DeQuantStub(),
    ).train()  # fmt: skip
    network.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(network)


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_bfloat16_does_not_fit(few_images, tmp_path):
    run = {"student": quantization_aware(), "method": "kd", "epochs": 1}
    bfloat16 = {"runtime.precision": "bfloat16"}
    message = r"student Sequential works in float32 and not in bf.*--set runtime\.precision=float32"
    with pytest.raises(ModelError, match=message):
        distill_few(few_images, tmp_path / "run", overrides=bfloat16, **run)
    distill_few(few_images, tmp_path / "run", overrides={"runtime.precision": "float32"}, **run)


@pytest.mark.filterwarnings("ignore")
def test_a_rehearsal_leaves_no_trace(few_images, tmp_path):
    """Observers, whose buffers grow, BatchNorm, a user's gradients, and random generators."""
    student = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), quantization_aware())
    student[0].weight.grad = torch.ones(3, 3, 1, 1)
    recipe = parse_recipe({"kind": "train", "model": "custom", "data": {"name": "custom"},
                           "runtime": {"precision": "float32"}})  # fmt: skip
    components = prepare(recipe, tmp_path / "run", UserObjects(None, student, *few_images))[1]
    step = TrainStep(CrossEntropy(), Tap(student, FeaturePaths(), []), None, components.runtime)
    batch = next(iter(components.data.train.epoch(1)))
    before, random = copy_state(student), torch.get_rng_state()
    rehearsal = rehearse([TrainPhase("train", step, 1)], components, batch, skips=False)
    assert rehearsal.loss.total > 1
    assert rehearsal.without_gradient == []
    assert equal_weights(copy_state(student), before)
    assert torch.equal(student[0].weight.grad, torch.ones(3, 3, 1, 1))
    assert student[2][1].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random)


class AuxiliaryHead(SmallNet):
    """A network that returns a second output in training."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class NeedsTargets(SmallNet):
    """A network that computes its own loss in training, as torchvision's detectors do."""

    def forward(self, x):
        if self.training:
            raise ValueError("targets should not be none when in training mode.")
        return super().forward(x)


@pytest.mark.parametrize(
    ("student", "message"),
    [(AuxiliaryHead(), "student AuxiliaryHead works in evaluation and fails in a .*gave tuple"),
     (NeedsTargets(), "student NeedsTargets works in evaluation .*targets should not be none")],
)  # fmt: skip
def test_a_network_that_fails_in_training_alone(few_images, tmp_path, student, message):
    with pytest.raises(ModelError, match=message):
        distill_few(few_images, tmp_path / "run", method="kd", student=student)
    assert not (tmp_path / "run").exists()
