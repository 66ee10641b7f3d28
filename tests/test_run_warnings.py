"""What a run warns of, before and while it trains."""

import json

import pytest
import torch
from small_runs import CustomNet, SmallNet, distill_few, run_command
from torch import nn

import cktf
from cktf.engine import Accuracy
from cktf.errors import CktfError
from cktf.models import Normalized, create, save_network
from cktf.objectives import CRD
from cktf.workflows.epoch_warnings import EpochWarnings
from cktf.workflows.run_warnings import is_guess

EPOCH = {"phase": "train", "loss": 1.0, "skipped": 0, "terms": {}, "test_top1": 60.0}


def warnings_of(data, folder, **networks):
    """Warnings of a run of one epoch; they are those of its log, too."""
    run = distill_few(data, folder, epochs=1, **{"method": "kd"} | networks)
    log = (run.folder / "log.txt").read_text()
    assert all(f"Warning: {line}" in log for line in run.summary["warnings"])
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary
    return run.summary["warnings"]


def activated(module, width=8):
    return nn.Sequential(SmallNet(width=width), module)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Softmax(1), "outputs are probabilities, as after softmax"),
        (nn.LogSoftmax(1), "outputs are logarithms of probabilities"),
        (nn.Sigmoid(), "outputs are from 0 to 1, as after sigmoid"),
        (nn.ReLU(), "outputs are never negative and often 0"),
    ],
    ids=["softmax", "log_softmax", "sigmoid", "ReLU"],
)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_outputs_that_are_no_logits(few_images, tmp_path, module, words, role):
    network = activated(module, width=16 if role == "teacher" else 8)
    (line,) = [w for w in warnings_of(few_images, tmp_path / "run", **{role: network})
               if "outputs" in w]  # fmt: skip
    assert line.startswith(f"The {role}'s {words}")


def test_a_run_warns_as_its_dry_run_does(few_images, tmp_path):
    lines = warnings_of(few_images, tmp_path / "run", teacher=SmallNet(), student=SmallNet())
    assert any("wrong way round" in line for line in lines)
    assert any("The teacher is right on" in line for line in lines)
    assert not any("outputs" in line for line in lines)


class Spare(SmallNet):
    """A network with a layer that it does not use, and features without a gradient."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)).detach())


def test_parameters_and_terms_without_a_gradient(few_images, tmp_path):
    (line,) = [w for w in warnings_of(few_images, tmp_path / "run", student=Spare())
               if "no gradient" in w]  # fmt: skip
    assert line.startswith("10 of the student's 12 parameters get no gradient and do not learn: a.")
    frozen = SmallNet()
    frozen.a.requires_grad_(False)
    frozen.b.requires_grad_(False)
    lines = warnings_of(few_images, tmp_path / "at", student=frozen, method="at+kd")
    assert any(w.startswith("at teaches the student nothing: ") for w in lines)
    assert any("Most of the student does not train: a.0.weight" in w for w in lines)


def test_a_classifier_that_no_term_reads_is_no_mistake(few_images, tmp_path):
    """Without labels, CRD trains the embedding alone."""
    run = cktf.distill(
        SmallNet(width=16), SmallNet(), unlabeled=few_images[0], method="crd", epochs=1,
        options={"crd": {"negatives": 16}}, out=tmp_path / "run", show=False,
    )  # fmt: skip
    assert not any("no gradient" in line for line in run.summary["warnings"])


def test_a_teacher_of_another_image_size(few_images, tmp_path):
    """Of a run: the size of its images, or that to which its network resizes them."""
    data = few_images[0]
    statistics = {"mean": data.mean, "std": data.std}
    for size, network_size, expected in ((48, None, True), (32, None, False), (32, 48, False)):
        network = Normalized(create("resnet14", 10), **statistics, size=network_size)
        path = tmp_path / f"{size}-{network_size}.safetensors"
        save_network(network, path, name="resnet14", classes=data.classes, dataset="fashion-mini",
                     images=torch.zeros(1, 3, size, size))  # fmt: skip
        run = cktf.distill(
            path, "resnet8", train="fashion-mini", method="kd", epochs=1, show=False,
            overrides={"data.per_class": 8}, out=tmp_path / f"run-{size}-{network_size}",
        )  # fmt: skip
        words = "trained on images of 48x48 pixels and gets 32x32"
        assert expected == any(words in line for line in run.summary["warnings"])


def test_guessing():
    assert is_guess(33.3 / 100, 300, 1 / 3)
    assert is_guess(0.13, 2000, 0.1)
    assert not is_guess(0.5, 64, 0.1)
    # Two classes, and a good teacher.
    assert not is_guess(0.9, 64, 0.5)
    # Four images cannot tell; nor can images of one class.
    assert not is_guess(0.5, 4, 0.5)
    assert not is_guess(1.0, 100, 1.0)


def find(*rows, told=None, **changes):
    arguments = {"epochs": 3, "role": "student", "lr": 0.1, "first_loss": 2.0, "guess": 0.1,
                 "test_images": 2000, "teacher": None, "uninformed": {"crd": 15.0}}  # fmt: skip
    watch = EpochWarnings(**arguments | changes, tell=lambda line: None)
    return watch.find([EPOCH | row for row in rows])


def test_good_epochs_have_no_warnings():
    assert find({}, {"loss": 0.1}, {"loss": 0.3}) == {}


def test_a_loss_that_rises():
    assert "rose in epoch 1, from 2 to 49.9" in find({"loss": 49.9})["loss"]
    assert "rose in epoch 2, from 1 to 9" in find({}, {"loss": 9.0})["loss"]
    assert "--set optimizer.lr=0.01" in find({"loss": 49.9})["loss"]


def test_accuracy_of_guessing():
    bad = {"test_top1": 13.0}
    assert find(bad, bad) == {}
    assert "After epoch 3 the student is right on 13.00 %" in find(bad, bad, bad)["accuracy"]
    assert "as by guessing" in find(bad, epochs=1)["accuracy"]
    assert find({"test_top1": None}, epochs=1) == {}


def test_a_student_better_than_its_teacher():
    teacher = Accuracy(50.0, 90.0, 2000)
    assert "more accurate than its teacher" in find({}, epochs=1, teacher=teacher)["accuracy"]
    assert find({}, epochs=2, teacher=teacher) == {}
    assert find({}, epochs=1, teacher=Accuracy(59.5, 90.0, 2000)) == {}


def test_contrast_that_tells_nothing():
    at_floor = {"terms": {"crd": 15.01}}
    assert "crd stays at 15.01" in find(at_floor, at_floor, at_floor)["crd"]
    assert find(at_floor, at_floor, {"terms": {"crd": 15.2}}) == {}
    assert find(at_floor, at_floor, epochs=2) == {}


def test_skipped_steps():
    assert "3 steps were skipped" in find({"skipped": 1}, {"skipped": 2})["skipped"]


@pytest.mark.parametrize("critic", ["nce", "infonce"])
@pytest.mark.parametrize("memory", ["bank", "batch"])
def test_the_loss_of_features_that_tell_nothing(critic, memory):
    """Equal features for all images, and equal rows in the memory."""
    crd = CRD(4, 6, 32, negatives=16, critic=critic, memory=memory)
    for bank in (crd.student_bank, crd.teacher_bank):
        bank.copy_(torch.eye(bank.shape[1])[0].expand_as(bank))
    with torch.no_grad():
        loss = crd.loss(torch.ones(8, 4), torch.ones(8, 6), torch.arange(8))
    expected = crd.uninformed_terms(8)["crd"]
    torch.testing.assert_close(float(loss), expected, rtol=1e-4, atol=0)


def test_a_run_tells_of_each_thing_once(few_images, tmp_path, capsys):
    """A student that sees nothing: in the log at the epoch, on the terminal, in the summary."""
    blind = CustomNet(lambda self, x: self.fc(0 * x.mean((2, 3))), fc=nn.Linear(3, 10))
    run = distill_few(few_images, tmp_path / "run", student=blind, method="kd", epochs=5)
    (line,) = [w for w in run.summary["warnings"] if "the student is right on" in w]
    assert line.startswith("After epoch 5")
    log = (run.folder / "log.txt").read_text()
    assert log.count("the student is right on") == 1
    assert log.index("After epoch 3") < log.index("epoch 4/5")
    assert sum("as by guessing. Are" in w for w in run.summary["warnings"]) == 1


def test_the_command_line_tells_each_warning_once(cli_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = (
        f"distill --teacher {cli_dir / 'teacher'} --student resnet8 --method kd --epochs 1 --out "
        "run --set data.per_class=8 --set runtime.track=none"
    )
    # A finished run tells them again.
    for more in ("", " --resume auto"):
        output = " ".join(run_command(line + more).split())
        assert output.count("Warning: The teacher (") == 1
        assert "3 warnings, above and in run/log.txt" in output


def test_a_network_without_a_teacher_is_no_student(few_images, tmp_path):
    blind = CustomNet(lambda self, x: self.fc(0 * x.mean((2, 3))), fc=nn.Linear(3, 10))
    run = cktf.teach(
        blind, train=few_images[0], test=few_images[1], epochs=1, out=tmp_path / "run", show=False
    )
    assert any("the network is right on" in line for line in run.summary["warnings"])
    assert not any("student" in line for line in run.summary["warnings"])
    for wrong in (blind.requires_grad_(False), nn.Linear(3, 10)):
        with pytest.raises(CktfError) as caught:
            cktf.teach(wrong, train=few_images[0], epochs=1, out=tmp_path / "b", show=False)
        assert "network" in str(caught.value)
        assert "student" not in str(caught.value)
