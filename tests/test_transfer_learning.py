"""Transfer without labels, and probes of features."""

import errno
import json
import os
import random
import shlex
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from small_runs import SmallNet, run_command
from torch import nn
from torch.utils.data import DataLoader, Dataset
from typer.testing import CliRunner

import cktf
from cktf.cli.main import app
from cktf.data import ImageSet, sample_per_class
from cktf.data.cifar_classes import CIFAR10
from cktf.engine import RunFolder, Trainer, run_folder
from cktf.errors import CheckpointError, CktfError, DataError, Interrupted, RecipeError
from cktf.models import Normalized, create, load_network, save_network
from cktf.objectives import METHODS
from cktf.recipes import build_test_loader, parse_transfer_recipe, read_recipe
from cktf.workflows import Run, carry_out, plan, prepare, transfer_learning
from cktf.workflows.classifier import EmbeddedImages
from cktf.workflows.linear_probe import (
    check_classes,
    choose_label_subsets,
    embed_images,
    fit_classifier,
)
from cktf.workflows.user_objects import select_samples


class Forbidden:
    """A label that nobody may look at."""

    def _refuse(self, *_):
        raise AssertionError("a label was read")

    __int__ = __index__ = __float__ = __eq__ = __hash__ = __array__ = __bool__ = _refuse


class Secret(Dataset):
    """Images whose labels must not be read."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, position):
        return self.data[position][0], Forbidden()

    @property
    def labels(self):
        raise AssertionError("labels were read")

    targets = labels


def state_of(network):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return state | {name: value.clone() for name, value in network.named_buffers()}


def same(before, after):
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


# Distilling without labels


@pytest.mark.parametrize("method", ["kd", "crd", "cktf", "at+ab", "cktf+kd"])
def test_labels_are_never_read(images, tmp_path, method):
    torch.manual_seed(0)
    options = {n: {"negatives": 16} for n in ("crd", "cktf") if n in method}
    run = cktf.distill(
        SmallNet(width=16), SmallNet(), unlabeled=Secret(images[0]), method=method, epochs=1,
        out=tmp_path, options=options, show=False, overrides={"init_epochs": 1},
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "ce" not in rows[-1]["terms"]
    assert run.summary["test_top1"] is None


def test_a_forbidden_label_is_noticed(images, tmp_path):
    with pytest.raises(AssertionError, match="read"):
        cktf.distill(
            SmallNet(), SmallNet(), train=Secret(images[0]), epochs=1, out=tmp_path, show=False
        )


NEEDING = [name for name, method in METHODS.items() if not method.accepts_unlabeled()]


@pytest.mark.parametrize("name", NEEDING)
def test_methods_that_need_labels_say_so_at_once(images, tmp_path, name):
    with pytest.raises(RecipeError, match=f"method: {name} (needs labels|only initialize)"):
        cktf.transfer(
            SmallNet(), SmallNet(), unlabeled=images[0], labeled=images[0], test=images[1],
            method=name, out=tmp_path, show=False,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_which_methods_those_are():
    assert set(NEEDING) >= {"ce", "ab", "fsp"}
    assert not set(NEEDING) & {"kd", "crd", "cktf", "at", "vid"}


# Probes


def gaussians(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centers = torch.randn(classes, 6, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, 6, generator=generator)
    # Features of very different sizes, one of them constant.
    found = (centers[labels] + noise) * torch.tensor([1, 100, 0.01, 1, 5, 1])
    return EmbeddedImages(torch.cat([found, torch.ones(count, 1)], 1), labels)


@pytest.mark.parametrize("classes", [2, 5])
def test_a_classifier_is_the_logistic_regression_of_its_strength(classes):
    data, test = gaussians(200, classes, 0), gaussians(300, classes, 1)
    found = fit_classifier(data)
    scaler = StandardScaler().fit(data.features.double().numpy())
    model = LogisticRegression(C=found.strength, max_iter=1000)
    model.fit(scaler.transform(data.features.double().numpy()), data.labels.numpy())
    expected = model.predict(scaler.transform(test.features.double().numpy()))
    logits = test.features @ found.weight.T + found.bias
    agreed = float((logits.argmax(1).numpy() == expected).mean())
    assert agreed > 0.99
    assert found.accuracy(test) == pytest.approx(
        100 * (expected == test.labels.numpy()).mean(), abs=1
    )


def test_a_classifier_of_one_label_each_and_of_none():
    one = gaussians(5, 5, 0)
    assert fit_classifier(one).accuracy(one) == 100
    with pytest.raises(DataError, match="of every class; given"):
        fit_classifier(EmbeddedImages(one.features[1:], one.labels[1:]))


def test_smaller_draws_are_within_larger_ones():
    labels = torch.arange(60) % 3
    few, more, every = choose_label_subsets(labels, [5, 1, 20], draws=3, seed=0)
    assert (few.labels, more.labels, every.labels) == (1, 5, 20)
    assert (len(few.draws), len(more.draws), len(every.draws)) == (3, 3, 1)
    for small, large in zip(few.draws, more.draws, strict=True):
        assert set(small.tolist()) < set(large.tolist())
        assert labels[large].bincount().tolist() == [5, 5, 5]
    assert len({tuple(draw.tolist()) for draw in more.draws}) == 3
    with pytest.raises(DataError, match="21 images of each class were asked for"):
        choose_label_subsets(labels, [21], 1, 0)
    # Neighboring seeds are as independent as others, and the first draw is that of a training.
    drawn = [
        d
        for seed in range(3)
        for d in choose_label_subsets(labels, [5], draws=3, seed=seed)[0].draws
    ]
    assert len({tuple(draw.tolist()) for draw in drawn}) == 9
    assert torch.equal(drawn[3], sample_per_class(labels, 5, 1))


def test_a_probe_changes_nothing_of_a_network(images):
    network = create("resnet8", 10).train()
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    before, modes = state_of(network), [m.training for m in network.modules()]
    tensors = [*network.parameters(), *(p.grad for p in network.parameters()), *network.buffers()]
    places = [(t.data_ptr(), t.stride()) for t in tensors]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    drawn = [random.random(), np.random.rand(), float(torch.rand(1))]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    found = cktf.probe(
        network, labeled=images[0], test=images[1], labels_per_class=[5, 20], draws=2
    )
    assert drawn == [random.random(), np.random.rand(), float(torch.rand(1))]
    after = [*network.parameters(), *(p.grad for p in network.parameters()), *network.buffers()]
    assert places == [(t.data_ptr(), t.stride()) for t in after]
    assert all(t is u for t, u in zip(tensors, after, strict=True))
    assert same(before, state_of(network))
    assert modes == [m.training for m in network.modules()]
    assert [len(point) for point in found.top1] == [2, 2]
    assert found.final == pytest.approx(sum(found.top1[1]) / 2)
    # Even random features tell ten kinds of clothes better than chance.
    assert found.final > 20


@pytest.mark.parametrize(
    ("runtime", "message"),
    [({"precison": "float32"}, "Did you mean 'precision'"), ({"precision": "float16"}, "float16"),
     ({"device": "gpu"}, "runtime.device")],
)  # fmt: skip
def test_mistakes_in_a_probes_runtime(images, runtime, message):
    with pytest.raises(RecipeError, match=message):
        cktf.probe(create("resnet8", 10), labeled=images[0], test=images[1], runtime=runtime)


def test_a_probe_needs_labels(images):
    with pytest.raises(DataError, match="labels"):
        cktf.probe(create("resnet8", 10), labeled=images[0].without_labels(), test=images[1])


def test_a_probe_reads_data_sets(images):
    loader = DataLoader(images[0], 64)
    with pytest.raises(RecipeError, match="labeled: give the data set, not a loader"):
        cktf.probe(create("resnet8", 10), labeled=loader, test=images[1])


def test_labels_below_zero_are_told():
    with pytest.raises(DataError, match="from 0; given -1 for 2 of 5 images"):
        check_classes(torch.tensor([-1, 0, 1, -1, 1]))


def test_labels_below_zero_are_told_before_labels_are_chosen(images):
    few = [(images[0][k][0], k % 3 - 1) for k in range(9)]
    with pytest.raises(DataError, match="from 0; given -1"):
        cktf.probe(create("resnet8", 2), labeled=few, test=few, labels_per_class=[1])


def test_samples_are_asked_for_by_plain_numbers():
    few = select_samples({0: "a", 2: "c"}, torch.tensor([2, 0]))
    assert [few[0], few[1]] == ["c", "a"]


# The whole of it


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
    for line_of in points.values():
        assert [p["labels_per_class"] for p in line_of] == [1, 3]
        assert [len(p["top1"]) for p in line_of] == [3, 3]
    assert summary["method"] == "cktf"
    assert summary["test_top1"] == points["student"][-1]["mean"]
    share = summary["test_top1"] / 100
    spread = 100 * (share * (1 - share) / summary["test_images"]) ** 0.5
    assert summary["test_standard_error"] == pytest.approx(spread)
    with Image.open(out / "curve.png") as plot:
        assert plot.format == "PNG"
        assert len(plot.convert("L").getcolors()) > 20
    network, described = load_network(out / "student.safetensors")
    assert len(described["classes"]) == 10
    # The student has the features of the first part, and a classifier of its own.
    first = load_network(out / "student" / "student.safetensors")[0]
    kept = {k: v for k, v in network.state_dict().items() if "fc" not in k and "linear" not in k}
    shared = first.state_dict()
    assert len(kept) < len(shared)
    assert all(torch.equal(value, shared[name]) for name, value in kept.items())
    again = plan(parse_transfer_recipe(read_recipe(out / "recipe.yaml")), out, resume=True)
    done = carry_out(again, show=False)
    assert done.summary == summary
    # The classifier in it is that of the first draw, and its accuracy that of the probe.
    accuracy, data = cktf.evaluate(out)
    assert data == "cifar10"
    assert accuracy.top1 == pytest.approx(points["student"][-1]["top1"][0], abs=0.01)
    assert "curve.png" in run_command(f"transfer --resume {out}")
    assert same(state_of(done.student), state_of(network))


def test_an_interrupted_transfer_continues_to_the_same_result(
    teacher_dir, cifar_dir, tmp_path, monkeypatch
):
    def go(out, **more):
        return cktf.transfer(
            teacher_dir, "resnet8", unlabeled="cifar10", method="crd", epochs=2, out=out,
            options={"crd": {"negatives": 8}}, show=False, **more,
            overrides={
                "data.dir": cifar_dir, "data.batch_size": 16, "labeled.classes": ["cat", "dog"],
                "scratch_epochs": 2, "checkpoint.epochs": 1,
            },
        )  # fmt: skip

    whole = go(tmp_path / "whole")
    start_epoch, calls = Trainer.start_epoch, []

    def cut(trainer, number):
        calls.append(number)
        if len(calls) in stops:
            raise Interrupted("Stopped", trainer.run.path)
        start_epoch(trainer, number)

    # In the second epoch of the student, and then in the second of the one from scratch.
    stops = {2, 5}
    monkeypatch.setattr(Trainer, "start_epoch", cut)
    with pytest.raises(Interrupted) as stopped:
        go(tmp_path / "cut")
    # Continued is the whole, not the part that was stopped.
    assert stopped.value.folder == tmp_path / "cut"
    with pytest.raises(RecipeError, match=r"already holds a run.*--resume auto"):
        go(tmp_path / "cut")
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", resume=True)
    done = go(tmp_path / "cut", resume=True)
    assert calls == [1, 2, 2, 1, 2, 2]
    timed = {"seconds", "images_per_second", "peak_memory_mb"}
    for name in whole.summary.keys() - timed:
        assert done.summary[name] == whole.summary[name], name
    assert same(state_of(done.student), state_of(whole.student))
    with pytest.raises(RecipeError, match="started with another recipe; it differs in: epochs"):
        plan(parse_transfer_recipe({**read_recipe(done.folder / "recipe.yaml"), "epochs": 3}),
             done.folder, resume=True)  # fmt: skip


def untrained(recipe, components, run, show):
    """A run that is over at once."""
    return Run(run.path, components.student, {"test_top1": 50.0, "epochs": 1})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_probing_that_is_stopped_can_be_continued(
    teacher_dir, cifar_dir, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(transfer_learning, "execute", untrained)
    monkeypatch.setattr(transfer_learning, "embed_images", lambda *_: os.kill(os.getpid(), number))
    line = (
        f"transfer --teacher {teacher_dir} --student resnet8 --unlabeled cifar10 "
        f"--data-dir {cifar_dir} --epochs 1 --out {tmp_path}/run "
        "--set data.batch_size=16 --on-nonfinite skip"
    )
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 75, result.output
    assert read_recipe(tmp_path / "run" / "recipe.yaml")["runtime"]["on_nonfinite"] == "skip"
    assert f"Stopped by {number.name}" in result.output
    assert f"Continue with: cktf transfer --resume {tmp_path}/run" in result.output


def test_a_transfer_keeps_its_folder_to_itself(teacher_dir, cifar_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer_learning, "execute", untrained)
    line = (
        f"transfer --teacher {teacher_dir} --student resnet8 --unlabeled cifar10 "
        f"--data-dir {cifar_dir} --epochs 1 --resume auto --out {tmp_path}/run "
        "--set data.batch_size=16"
    )
    second = []

    def meanwhile(*_):
        second.append(CliRunner().invoke(app, shlex.split(line)))
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer_learning, "embed_images", meanwhile)
    assert CliRunner().invoke(app, shlex.split(line)).exit_code == 75
    assert second[0].exit_code == 2
    assert "is being written by another run" in " ".join(second[0].output.split())


def test_a_transfer_waits_for_room_for_its_files(images, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer_learning, "execute", untrained)
    monkeypatch.setattr(run_folder.time, "sleep", lambda _: None)

    def full_once(owner, name):
        write, refused = getattr(owner, name), []

        def written(*args, **named):
            if not refused:
                refused.append(name)
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args, **named)

        monkeypatch.setattr(owner, name, written)

    for name in ("write_atomically", "draw_curve", "save_network"):
        full_once(transfer_learning, name)
    full_once(RunFolder, "write_summary")
    few = [data.subset(torch.arange(0, len(data), 12)) for data in images]
    done = cktf.transfer(
        SmallNet(width=16), SmallNet(), unlabeled=few[0], labeled=few[0], test=few[1], method="kd",
        labels_per_class=[1, 2], draws=1, out=tmp_path, show=False,
        overrides={"data.batch_size": 20},
    )  # fmt: skip
    log = (tmp_path / "log.txt").read_text()
    for what in ("its recipe", "the curve", "the student", "the summary"):
        assert f"{what} could not be written (No space left on device)" in log
    assert RunFolder(done.folder).finished


def test_transfer_of_objects(images, tmp_path):
    """A user's own networks and data sets; what was given as the student is trained."""
    torch.manual_seed(0)
    teacher, student = SmallNet(width=16), SmallNet(classes=16)
    before = state_of(teacher)
    with pytest.raises(CktfError):
        # KD compares as many logits as the teacher has.
        cktf.transfer(
            teacher, student, unlabeled=Secret(images[0]), labeled=images[0], test=images[1],
            method="kd", epochs=1, out=tmp_path / "kd", show=False,
        )  # fmt: skip
    done = cktf.transfer(
        teacher, student, unlabeled=Secret(images[0]), labeled=images[0], test=images[1],
        method="cktf", epochs=1, labels_per_class=[2], draws=2, out=tmp_path / "cktf", show=False,
        options={"cktf": {"negatives": 16}}, overrides={"scratch_epochs": 1},
    )  # fmt: skip
    assert done.student is student
    assert student.fc.out_features == 10
    assert same(before, state_of(teacher))
    assert {"scratch_top1", "floor_probe_top1", "teacher_probe_top1"} <= done.summary.keys()


def test_labeled_images_may_lack_the_last_class(images, tmp_path):
    torch.manual_seed(0)
    full = images[0]
    kept = full.labels < 9
    few = ImageSet(full.images[kept], full.labels[kept], full.classes, full.mean, full.std)
    done = cktf.transfer(
        SmallNet(width=16), SmallNet(), unlabeled=Secret(full), labeled=few, test=images[1],
        method="kd", epochs=1, labels_per_class=[2], out=tmp_path / "run", show=False,
        overrides={"scratch_epochs": 1},
    )  # fmt: skip
    assert done.summary["test_images"] == len(images[1])
    assert done.summary["scratch_top1"] is not None


class FromOne(Dataset):
    """Classes that are numbered from 1."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, position):
        image, label = self.data[position]
        return image, label + 1


class Scaled(SmallNet):
    """Whose logits are not those of its classifier."""

    def forward(self, x):
        return 3 * super().forward(x)


class Convolved(SmallNet):
    """Which classifies place by place."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(16, 10, 1)

    def forward(self, x):
        return self.fc(self.b(self.a(x))).mean((2, 3))


class TwoLayers(SmallNet):
    """A second layer on the first one's logits."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(10, 10)

    def forward(self, x):
        return self.last(super().forward(x).relu())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labeled": FromOne}, r"\[0, 100.* images of class 0"),
        ({"test": FromOne}, "test labels run from 1 to 10"),
        ({"student": Scaled}, "more than a linear layer"),
        ({"student": TwoLayers, "overrides": {"student_embedding": "fc:input"}}, "more than"),
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
    }
    with pytest.raises(CktfError, match=message):
        cktf.transfer(
            SmallNet(width=16), change.pop("student", SmallNet)(), unlabeled=Secret(images[0]),
            method="crd", epochs=1, out=tmp_path, show=False, **made, **change,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_student_that_classifies_by_a_convolution(images, tmp_path):
    done = cktf.transfer(
        SmallNet(width=16), Convolved(), unlabeled=Secret(images[0]), labeled=images[0],
        test=images[1], method="kd", epochs=1, labels_per_class=[2], draws=1, out=tmp_path,
        show=False, overrides={"scratch_epochs": 1},
    )  # fmt: skip
    assert isinstance(done.student.fc, nn.Conv2d)


def test_a_student_of_python_that_is_given_again_has_learned(images, tmp_path, monkeypatch):
    """The floor and the start from scratch are of what it was at the first step."""

    def made(width):
        torch.manual_seed(width)
        return SmallNet(width=width)

    def go(out, student, **more):
        return cktf.transfer(
            made(16), student, unlabeled=Secret(images[0]), labeled=images[0], test=images[1],
            method="kd", epochs=1, labels_per_class=[2], draws=1, out=out, show=False,
            overrides={"scratch_epochs": 1}, **more,
        )  # fmt: skip

    whole = go(tmp_path / "whole", made(8))
    start_epoch, calls = Trainer.start_epoch, []

    def cut(trainer, number):
        calls.append(number)
        if len(calls) == 2:
            raise Interrupted("Stopped", trainer.run.path)
        start_epoch(trainer, number)

    monkeypatch.setattr(Trainer, "start_epoch", cut)
    student = made(8)
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", student)
    with pytest.raises(CheckpointError, match="of another student"):
        go(tmp_path / "cut", made(4), resume=True)
    done = go(tmp_path / "cut", student, resume=True)
    for name in ("points", "floor_probe_top1", "scratch_top1"):
        assert done.summary[name] == whole.summary[name], name


def test_the_embedding_that_is_named_is_the_one_probed(images):
    loader, network = build_test_loader(images[1]), TwoLayers()
    assert embed_images(network, loader).features.shape == (500, 10)
    assert embed_images(network, loader, embedding="fc:input").features.shape == (500, 16)


# Probes from the command line


@pytest.fixture
def probed(teacher_dir, tmp_path):
    """A run folder of its own, since probes write into it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "student.safetensors").write_bytes((teacher_dir / "student.safetensors").read_bytes())
    return run


def test_probe_in_closed_form(probed, cifar_dir):
    before = (probed / "student.safetensors").read_bytes()
    line = f"probe {probed} --labeled cifar10 --data-dir {cifar_dir}"
    assert "all" in run_command(line)
    printed = run_command(f"{line} --labels-per-class 1,3 --draws 2")
    assert "curve.png" in printed
    summary = json.loads((probed / "probe" / "summary.json").read_text())
    assert [p["labels_per_class"] for p in summary["points"]] == [1, 3]
    assert (probed / "student.safetensors").read_bytes() == before


def test_probe_by_sgd_leaves_the_features_as_they_were(probed, cifar_dir):
    line = f"probe {probed} --labeled cifar10 --data-dir {cifar_dir} --epochs 2"
    run_command(f"{line} --sgd --set data.batch_size=16")
    before, after = (
        load_network(path / "student.safetensors")[0].state_dict()
        for path in (probed, probed / "probe-sgd")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"network.fc.weight", "network.fc.bias"}


@pytest.mark.parametrize("mode", ["", "--sgd", "--finetune"])
def test_a_probe_is_at_the_size_of_training(cifar_dir, tmp_path, monkeypatch, mode):
    """As cktf evaluate is; --set data.image_size asks for another."""
    network = Normalized(create("resnet8", 10), [0.5] * 3, [0.25] * 3)
    path = tmp_path / "student.safetensors"
    save_network(
        network, path, name="resnet8", classes=CIFAR10, dataset="cifar10",
        images=torch.rand(2, 3, 24, 24),
    )  # fmt: skip
    sizes = []

    def record_call(recipe, *_, **__):
        sizes.append(recipe.data.image_size)
        raise RecipeError(["enough"])

    monkeypatch.setattr("cktf.workflows.run_recipe", record_call)
    monkeypatch.setattr("cktf.workflows.probe_run", record_call)
    line = f"probe {path} --labeled cifar10 --data-dir {cifar_dir} {mode}"
    for more in ("", " --set data.image_size=40"):
        CliRunner().invoke(app, shlex.split(line + more))
    assert sizes == [24, 40]


@pytest.mark.parametrize("mode", ["--sgd", "--finetune"])
def test_a_probe_begins_with_a_new_classifier(probed, cifar_dir, monkeypatch, mode):
    """Whatever labels the network's own was fitted on, of the same classes or not."""
    begun = []

    def first(recipe, *_, **__):
        begun.append(prepare(recipe, probed / "none")[1].student.state_dict())
        raise RecipeError(["enough"])

    monkeypatch.setattr("cktf.workflows.run_recipe", first)
    line = f"probe {probed} --labeled cifar10 --data-dir {cifar_dir} --epochs 1 {mode}"
    assert CliRunner().invoke(app, shlex.split(line)).exit_code == 2
    own = load_network(probed / "student.safetensors")[0].state_dict()
    changed = {name for name in own if not torch.equal(own[name], begun[0][name])}
    assert changed == {"network.fc.weight", "network.fc.bias"}


def test_finetuning_trains_all(probed, cifar_dir):
    line = f"probe {probed} --labeled cifar10 --data-dir {cifar_dir} --epochs 1"
    run_command(f"{line} --finetune --set data.batch_size=16")
    before, after = (
        load_network(path / "student.safetensors")[0].state_dict()
        for path in (probed, probed / "finetuned")
    )
    same_still = {name for name in before if torch.equal(before[name], after[name])}
    assert same_still <= {n for n in before if n in ("mean", "std")}


MISTAKES = {
    "": "labeled: is needed",
    "--labeled cifar1": "Did you mean 'cifar10'?",
    "--labeled cifar10 --sgd --finetune": "give one of them",
    "--labeled cifar10 --sgd --draws 3": "Leave --sgd away for a curve",
    "--labeled cifar10 --labels-per-class 1,x": "given '1,x'",
    "--labeled cifar10 --labels-per-class 9999": "9999 images of each class were asked for",
    "--labeled cifar10 --epochs 3": "add --sgd or --finetune",
}


@pytest.mark.parametrize(("options", "words"), MISTAKES.items(), ids=MISTAKES)
def test_mistakes_of_a_probe(probed, cifar_dir, options, words):
    line = f"probe {probed} {options} --data-dir {cifar_dir}"
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert [p.name for p in probed.iterdir()] == ["student.safetensors"]
