"""Distillation without labels, then a probe: `cktf.transfer` and `cktf transfer`."""

import errno
import json
import os
import signal
import sys

import pytest
import torch
from PIL import Image
from small_runs import (
    SmallNet,
    TwoClassifiers,
    copy_state,
    equal_weights,
    read_metrics,
    run_command,
)
from torch import nn
from torch.utils.data import Dataset

import cktf
from cktf.engine import RunFolder, Trainer, run_folder
from cktf.errors import CheckpointError, CktfError, Interrupted, RecipeError
from cktf.models import load_network
from cktf.objectives import METHODS
from cktf.recipes import parse_transfer_recipe, read_recipe
from cktf.workflows import Run, linear_probe, plan_transfer, run_transfer, transfer_learning


class UnreadableLabel:
    """A label that raises on any use."""

    def _refuse(self, *_):
        raise AssertionError("a label was read")

    __int__ = __index__ = __float__ = __eq__ = __hash__ = __array__ = __bool__ = _refuse


class UnreadableLabels(Dataset):
    """Images whose labels raise on any use."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, position):
        return self.data[position][0], UnreadableLabel()

    @property
    def labels(self):
        raise AssertionError("labels were read")

    targets = labels


def transfer(images, out, *, teacher=None, student=None, **changes):
    """Transfer with KD between small networks, one epoch, two labels of each class."""
    settings = {
        "unlabeled": UnreadableLabels(images[0]), "labeled": images[0], "test": images[1],
        "method": "kd", "epochs": 1, "labels_per_class": [2], "draws": 1,
        "overrides": {"scratch_epochs": 1},
    }  # fmt: skip
    return cktf.transfer(
        teacher or SmallNet(width=16), student or SmallNet(), out=out, show=False,
        **(settings | changes),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["kd", "crd", "cktf", "at+vid+ab", "cktf+kd"])
def test_labels_are_never_read(images, tmp_path, method):
    torch.manual_seed(0)
    options = {n: {"negatives": 16} for n in ("crd", "cktf") if n in method}
    run = cktf.distill(
        SmallNet(width=16), SmallNet(), unlabeled=UnreadableLabels(images[0]), method=method,
        epochs=1, out=tmp_path, options=options, show=False, overrides={"init_epochs": 1},
    )  # fmt: skip
    assert "ce" not in read_metrics(tmp_path)[-1]["terms"]
    assert run.summary["test_top1"] is None


def test_an_unreadable_label_is_noticed(images, tmp_path):
    with pytest.raises(AssertionError, match="read"):
        cktf.distill(
            SmallNet(), SmallNet(), train=UnreadableLabels(images[0]), epochs=1, out=tmp_path,
            show=False,
        )  # fmt: skip


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.accepts_unlabeled()])
def test_methods_that_need_labels_are_refused(images, tmp_path, name):
    with pytest.raises(RecipeError, match=f"method: {name} (needs labels|only initialize)"):
        transfer(images, tmp_path, method=name)
    assert not list(tmp_path.iterdir())


def test_transfer(teacher_dir, cifar_dir, tmp_path):
    out = tmp_path / "run"
    line = (
        f"transfer --teacher {teacher_dir} --student resnet8 --unlabeled cifar10 "
        f"--data-dir {cifar_dir} --labels-per-class 1,3 --draws 3 --epochs 1 --scratch-epochs 1 "
        f"--out {out} --set data.batch_size=16 --set options.cktf.negatives=16 "
        "--set runtime.precision=float32"
    )
    printed = run_command(line)
    for word in ("labels of a class", "teacher", "student", "floor", "scratch", "curve.png", "±"):
        assert word in printed
    summary = json.loads((out / "summary.json").read_text())
    points = summary["points"]
    assert list(points) == ["teacher", "student", "floor"]
    for curve in points.values():
        assert [p["labels_per_class"] for p in curve] == [1, 3]
        assert [len(p["top1"]) for p in curve] == [3, 3]
    assert summary["method"] == "paper/transfer"
    assert summary["test_top1"] == points["student"][-1]["mean"]
    share = summary["test_top1"] / 100
    spread = 100 * (share * (1 - share) / summary["test_images"]) ** 0.5
    assert summary["test_standard_error"] == pytest.approx(spread)
    with Image.open(out / "curve.png") as plot:
        assert plot.format == "PNG"
        assert len(plot.convert("L").getcolors()) > 20
    network, metadata = load_network(out / "student.safetensors")
    assert len(metadata["classes"]) == 10
    # The features are those of the distilled student; the classifier is the probe's.
    distilled = load_network(out / "student" / "student.safetensors")[0].state_dict()
    trained = network.state_dict()
    changed = {name for name in distilled if not torch.equal(distilled[name], trained[name])}
    assert changed == {"network.fc.weight", "network.fc.bias"}
    recipe = parse_transfer_recipe(read_recipe(out / "recipe.yaml"))
    finished = run_transfer(plan_transfer(recipe, out, resume=True), show=False)
    assert finished.summary == summary
    # The probe's classifier is that of the first draw.
    accuracy, data = cktf.evaluate(out)
    assert data == "cifar10"
    assert accuracy.top1 == pytest.approx(points["student"][-1]["top1"][0], abs=0.01)
    assert "curve.png" in run_command(f"transfer --resume {out}")
    assert equal_weights(copy_state(finished.student), copy_state(network))


def interrupt_epochs(monkeypatch, stops):
    """Interrupt at the starts of epochs whose count, over all trainings, is in `stops`.

    Returns the list to which every epoch's number is appended as it starts.
    """
    start_epoch, epochs = Trainer.start_epoch, []

    def start_or_interrupt(trainer, number):
        epochs.append(number)
        if len(epochs) in stops:
            raise Interrupted("Stopped", trainer.run.path)
        start_epoch(trainer, number)

    monkeypatch.setattr(Trainer, "start_epoch", start_or_interrupt)
    return epochs


def test_an_interrupted_transfer_continues_to_the_same_result(
    teacher_dir, cifar_dir, tmp_path, monkeypatch
):
    def run(name, **more):
        return cktf.transfer(
            teacher_dir, "resnet8", unlabeled="cifar10", method="crd", epochs=2, show=False,
            out=tmp_path / name, options={"crd": {"negatives": 8}}, **more,
            overrides={
                "data.dir": cifar_dir, "data.batch_size": 16, "labeled.classes": ["cat", "dog"],
                "scratch_epochs": 2, "checkpoint.epochs": 1,
            },
        )  # fmt: skip

    whole = run("whole")
    # In the second epoch of the distillation, then in the second of training from scratch.
    epochs = interrupt_epochs(monkeypatch, {2, 5})
    with pytest.raises(Interrupted) as stopped:
        run("cut")
    # The folder to resume is the transfer's.
    assert stopped.value.folder == tmp_path / "cut"
    with pytest.raises(RecipeError, match=r"already holds a run.*--resume auto"):
        run("cut")
    with pytest.raises(Interrupted):
        run("cut", resume=True)
    resumed = run("cut", resume=True)
    assert epochs == [1, 2, 2, 1, 2, 2]
    timed = {"seconds", "images_per_second", "peak_memory_mb"}
    for name in whole.summary.keys() - timed:
        assert resumed.summary[name] == whole.summary[name], name
    assert equal_weights(copy_state(resumed.student), copy_state(whole.student))
    recipe = parse_transfer_recipe(read_recipe(resumed.folder / "recipe.yaml") | {"epochs": 3})
    with pytest.raises(RecipeError, match="started with another recipe; it differs in: epochs"):
        plan_transfer(recipe, resumed.folder, resume=True)


def skip_training(recipe, components, folder, *_):
    """Stand in for `execute`: a run that has ended, with the student as it was."""
    return Run(folder.path, components.student, {"test_top1": 50.0, "epochs": 1})


@pytest.fixture
def transfer_line(teacher_dir, cifar_dir, tmp_path):
    """A command that transfers into `tmp_path / "run"`."""
    return (
        f"transfer --teacher {teacher_dir} --student resnet8 --unlabeled cifar10 "
        f"--data-dir {cifar_dir} --epochs 1 --out {tmp_path}/run --set data.batch_size=16"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_transfer_stopped_while_probing_can_be_resumed(
    transfer_line, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(transfer_learning, "execute", skip_training)
    monkeypatch.setattr(linear_probe, "embed_images", lambda *_: os.kill(os.getpid(), number))
    printed = run_command(f"{transfer_line} --on-nonfinite skip", exit_code=75)
    assert read_recipe(tmp_path / "run" / "recipe.yaml")["runtime"]["on_nonfinite"] == "skip"
    assert f"Stopped by {number.name}" in printed
    assert f"Continue with: cktf transfer --resume {tmp_path}/run" in printed


def test_two_transfers_cannot_write_to_one_folder(transfer_line, monkeypatch):
    printed = []

    def transfer_again(*_):
        printed.extend(run_command(f"{transfer_line} --resume auto", exit_code=2).split())
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer_learning, "execute", skip_training)
    monkeypatch.setattr(linear_probe, "embed_images", transfer_again)
    run_command(transfer_line, exit_code=75)
    assert "is being written by another run" in " ".join(printed)


def test_a_transfer_waits_for_room_for_its_files(images, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer_learning, "execute", skip_training)
    monkeypatch.setattr(run_folder.time, "sleep", lambda _: None)

    def fail_once(owner, name):
        write, errors = getattr(owner, name), [OSError(errno.ENOSPC, "No space left on device")]

        def fail_or_write(*args, **named):
            if errors:
                raise errors.pop()
            return write(*args, **named)

        monkeypatch.setattr(owner, name, fail_or_write)

    for name in ("write_atomically", "draw_curve", "save_network"):
        fail_once(transfer_learning, name)
    fail_once(RunFolder, "write_summary")
    few = [data.subset(torch.arange(0, len(data), 12)) for data in images]
    run = transfer(few, tmp_path, labels_per_class=[1, 2], overrides={"data.batch_size": 20})
    log = (tmp_path / "log.txt").read_text()
    for what in ("its recipe", "the curve", "the student", "the summary"):
        assert f"{what} could not be written (No space left on device)" in log
    assert RunFolder(run.folder).finished


class RecordFolders(cktf.Callback):
    """Records the name of the run folder at the end of each epoch."""

    def __init__(self):
        self.folders = []

    def on_epoch_end(self, trainer, row):
        self.folders.append(trainer.run.path.name)


def test_transfer_of_objects(images, tmp_path):
    """With a user's networks and data sets, the student that was passed is trained."""
    torch.manual_seed(0)
    teacher, student = SmallNet(width=16), SmallNet(classes=16)
    before = copy_state(teacher)
    with pytest.raises(CktfError):
        # KD compares as many logits as the teacher has.
        transfer(images, tmp_path / "kd", teacher=teacher, student=student)
    recorder = RecordFolders()
    run = transfer(
        images, tmp_path / "cktf", teacher=teacher, student=student, method="cktf", draws=2,
        options={"cktf": {"negatives": 16}}, callbacks=[recorder],
    )  # fmt: skip
    assert run.student is student
    assert student.fc.out_features == 10
    assert equal_weights(before, copy_state(teacher))
    assert {"scratch_top1", "floor_probe_top1", "teacher_probe_top1"} <= run.summary.keys()
    assert recorder.folders == ["student"]


def number_from_one(data):
    return [(image, label + 1) for image, label in data]


class ScaledLogits(SmallNet):
    """Its logits are not those of its last linear layer."""

    def forward(self, x):
        return 3 * super().forward(x)


class ConvolutionalClassifier(SmallNet):
    """It classifies each position of the last map."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(16, 10, 1)

    def forward(self, x):
        return self.fc(self.b(self.a(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labeled": number_from_one}, "given 0 of class 0, 100 of class 1"),
        ({"test": number_from_one}, "test labels run from 1 to 10"),
        ({"student": ScaledLogits}, "more than a linear layer"),
        ({"student": TwoClassifiers, "overrides": {"student_embedding": "fc:input"}}, "more than"),
        ({"overrides": {"student_embedding": "fc"}}, "linear layer on 'fc'"),
        ({"absent": "sklearn"}, "needs scikit-learn"),
        ({"absent": "matplotlib", "labels_per_class": [1, 2]}, "needs matplotlib"),
    ],
    ids=["labels", "test labels", "scaled", "what follows", "no layer", "sklearn", "matplotlib"],
)
def test_nothing_is_trained_that_cannot_be_probed(change, message, images, tmp_path, monkeypatch):
    change = dict(change)
    if absent := change.pop("absent", None):
        monkeypatch.setitem(sys.modules, absent, None)
    made = {
        "labeled": change.pop("labeled", list)(images[0]),
        "test": change.pop("test", list)(images[1]),
        "student": change.pop("student", SmallNet)(),
    }
    with pytest.raises(CktfError, match=message):
        transfer(images, tmp_path, **({"method": "crd", "overrides": {}} | made | change))
    assert not list(tmp_path.iterdir())


def test_convolutional_classifier_and_a_last_class_without_labeled_images(images, tmp_path):
    labeled = images[0].subset((images[0].labels < 9).nonzero()[:, 0])
    run = transfer(images, tmp_path, labeled=labeled, student=ConvolutionalClassifier())
    assert isinstance(run.student.fc, nn.Conv2d)
    assert run.summary["test_images"] == len(images[1])
    assert run.summary["scratch_top1"] is not None


def test_a_resumed_transfer_restores_the_users_initial_student(images, tmp_path, monkeypatch):
    """The floor and the training from scratch take the weights that the transfer began with."""

    def build(width):
        torch.manual_seed(width)
        return SmallNet(width=width)

    def run(name, student, **more):
        return transfer(images, tmp_path / name, teacher=build(16), student=student, **more)

    whole = run("whole", build(8))
    interrupt_epochs(monkeypatch, {2})
    student = build(8)
    with pytest.raises(Interrupted):
        run("cut", student)
    with pytest.raises(CheckpointError, match="of another student"):
        run("cut", build(4), resume=True)
    resumed = run("cut", student, resume=True)
    for name in ("points", "floor_probe_top1", "scratch_top1"):
        assert resumed.summary[name] == whole.summary[name], name
