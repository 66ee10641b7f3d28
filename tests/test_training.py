"""Small runs from start to end: learning, the run folder, repetition, mistakes."""

import copy
import importlib.metadata
import json
import math
import random
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from small_runs import (
    OPTIONS,
    SmallNet,
    assert_equal_runs,
    copy_state,
    distill,
    distill_few,
    equal_weights,
    read_metrics,
    student_weights,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import cktf
from cktf.data import MemoryLoader
from cktf.engine import (
    Accuracy,
    RunFolder,
    RuntimeConfig,
    ScheduleConfig,
    Trainer,
    TrainStep,
    start_runtime,
)
from cktf.engine.step import build_scheduler
from cktf.errors import (
    CktfError,
    DataError,
    ModelError,
    RecipeError,
    RunFolderError,
    TapError,
    TrainingError,
)
from cktf.models import Normalized, create
from cktf.recipes import parse_recipe, read_recipe
from cktf.workflows import run_recipe
from cktf.workflows.run import start_run
from cktf.workflows.train import prepare
from cktf.workflows.user_objects import UserObjects

SUMMARY = {
    "method", "teacher", "student", "dataset", "seed", "epochs", "test_top1", "test_top5",
    "best_top1", "teacher_top1", "student_parameters", "teacher_parameters", "compression_ratio",
    "images_per_second", "seconds", "peak_memory_mb", "versions", "device",
}  # fmt: skip


def test_learning(images, tmp_path):
    """Ten classes: far better than chance within seconds."""
    run = cktf.teach(
        SmallNet(width=16), train=images[0], test=images[1], epochs=10, out=tmp_path, show=False,
        overrides={"optimizer.lr": 0.2},
    )  # fmt: skip
    assert run.summary["test_top1"] > 50
    assert run.summary["test_top5"] > 90
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert losses[-1] < losses[0] - 0.3


def test_run_folder(images, tmp_path, student):
    run = distill(images, tmp_path / "run", student=student)
    assert run.student is student
    names = {p.name for p in run.folder.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "summary.json", "checkpoints", "student.safetensors",
            "log.txt"} <= names  # fmt: skip
    assert not list(run.folder.rglob("*.partial"))
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary == run.summary
    assert set(summary) >= SUMMARY
    rows = read_metrics(run.folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert summary["test_top1"] == rows[-1]["test_top1"]
    assert summary["best_top1"] == max(row["test_top1"] for row in rows)
    terms = ["ce", "cktf", "cktf.stem", "cktf.module1", "cktf.embedding", "kd"]
    assert list(rows[0]["terms"]) == terms
    recipe = parse_recipe(read_recipe(run.folder / "recipe.yaml"))
    assert (recipe.epochs, recipe.method, recipe.teacher) == (2, "cktf+kd", "custom")


def test_teacher_is_frozen_in_eval_mode_and_restored(few_images, tmp_path, monkeypatch):
    teacher = SmallNet(width=16)
    teacher.a.requires_grad_(False).eval()

    def read_flags():
        trained = [p.requires_grad for p in teacher.parameters()]
        return trained, [m.training for m in teacher.modules()]

    def record_flags(self, *inputs):
        flags.append(read_flags())
        return forward(self, *inputs)

    forward, flags, flags_before = TrainStep.forward, [], read_flags()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    monkeypatch.setattr(TrainStep, "forward", record_flags)
    for out, more in (("run", {}), ("failed", {"overrides": {"optimizer.lr": 1e9}})):
        with pytest.raises(TrainingError) if more else nullcontext():
            distill_few(few_images, tmp_path / out, teacher=teacher, **more)
        assert not any(any(trained + modes) for trained, modes in flags)
        assert read_flags() == flags_before
        assert equal_weights(before, teacher.state_dict())


def test_a_student_that_nothing_would_train_is_refused(images, tmp_path):
    frozen, network = SmallNet().requires_grad_(False), SmallNet()
    shares_a = SmallNet(width=16)
    shares_a.a = network.a
    distill = partial(cktf.distill, method="crd")
    mistakes = [
        (partial(distill, SmallNet(), frozen), "requires a gradient"),
        (partial(cktf.teach, frozen), "none of SmallNet's"),
        (partial(distill, network, network), "10 of the 10 parameters of SmallNet"),
        (partial(distill, shares_a, network), "4 of the 10 parameters"),
    ]
    for go, message in mistakes:
        with pytest.raises(ModelError, match=message):
            go(train=images[0], epochs=1, out=tmp_path / "run", show=False)
    with pytest.raises(ModelError, match="requires a gradient"):
        cktf.transfer(
            SmallNet(), frozen, unlabeled=images[0], labeled=images[0], test=images[1], epochs=1,
            out=tmp_path / "run", show=False,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_stay_despite_earlier_gradients(few_images, tmp_path, student):
    """Before the run, the user called backward and then froze a layer."""
    student(torch.rand(8, 3, 32, 32)).sum().backward()
    student.a[0].requires_grad_(False)
    before = student.a[0].weight.clone()
    distill_few(few_images, tmp_path, epochs=1, method="kd", student=student)
    assert torch.equal(student.a[0].weight, before)


@pytest.mark.parametrize("method", ["kd", "cktf"])
def test_frozen_batch_norm_keeps_its_statistics(few_images, tmp_path, student, method):
    """Only the first phase is frozen; a forward pass fills the memory."""
    student.a.requires_grad_(False)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    options = {"cktf": {"memory": "queue", "queue_size": 64, "negatives": 16, "init": "forward"}}
    distill_few(
        few_images, tmp_path, student=student, method=method, epochs=1,
        options=options if method == "cktf" else None,
    )  # fmt: skip
    after = student.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {name for name in before if name.startswith("a.")}


def test_heads_train_with_the_student(few_images, tmp_path):
    class CopyHeads(cktf.Callback):
        def on_phase_start(self, trainer):
            self.before = self.copy(trainer)

        def on_epoch_end(self, trainer, row):
            self.after = self.copy(trainer)

        @staticmethod
        def copy(trainer):
            return {k: v.detach().clone() for k, v in trainer.objective.named_parameters()}

    heads = CopyHeads()
    distill_few(few_images, tmp_path, epochs=1, callbacks=[heads])
    assert len(heads.before) > 8
    assert all(not torch.equal(heads.before[k], heads.after[k]) for k in heads.before)


def test_a_seed_fixes_everything(few_images, tmp_path):
    """Whatever the state of the generators: weights, order, augmentation and negatives."""

    def weights(name, user_seed, **more):
        torch.manual_seed(user_seed)
        run = cktf.distill(
            teacher, "resnet8", train=train, method="cktf+kd", epochs=1, options=OPTIONS,
            out=tmp_path / name, show=False, overrides={"data.batch_size": 40}, **more,
        )  # fmt: skip
        return student_weights(run)

    teacher, train = SmallNet(width=16), few_images[0].subset(torch.arange(60, 140))
    first = weights("a", user_seed=5)
    assert equal_weights(first, weights("b", user_seed=6))
    assert not equal_weights(first, weights("c", user_seed=5, seed=1))


@pytest.mark.parametrize("seed", [0, 3])
def test_training_begins_with_the_seed(few_images, tmp_path, seed):
    """Draws before it, such as those of weights, do not change the draws of training."""

    class Draw(cktf.Callback):
        def on_train_start(self, trainer):
            self.drawn = random.random(), np.random.rand(), torch.rand(3).tolist()

    draw = Draw()
    distill_few(few_images, tmp_path, epochs=1, seed=seed, callbacks=[draw])
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    assert draw.drawn == (random.random(), np.random.rand(), torch.rand(3).tolist())


def plain_loop(network, train, test, rates, seed):
    """Training as PyTorch's tutorials write it; returns what metrics.jsonl should hold."""
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1.0, momentum=0.8, weight_decay=0.01, nesterov=True
    )
    rows, loader = [], MemoryLoader(train, 40, train=True, augment=True, seed=seed)
    network.to(memory_format=torch.channels_last)
    for epoch in range(1, 1 + len(rates) // 5):
        losses, norms = [], []
        network.train()
        for batch, rate in zip(loader.epoch(epoch), rates[5 * epoch - 5 :], strict=False):
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(nn.utils.clip_grad_norm_(network.parameters(), 0.9)))
            optimizer.step()
            losses.append(loss.item())
        network.eval()
        with torch.no_grad():
            logits = network(test.images.permute(0, 3, 1, 2).float() / 255)
        top1 = 100 * float((logits.argmax(1) == test.labels).float().mean())
        rows.append({
            "loss": sum(losses) / 5, "gradient_norm": sum(norms) / 5, "lr": rate, "test_top1": top1
        })  # fmt: skip
    return rows


def test_a_run_is_a_plain_loop(images, tmp_path, student):
    """Order, modes, clipping, optimizer, schedule, evaluation and means, of two epochs."""
    train, test = (data.subset(torch.arange(0, len(data), len(data) // 200)) for data in images)
    # Gradients that a user's network comes with are no part of the first step.
    student(torch.rand(8, 3, 32, 32)).sum().backward()
    expected, seed = copy.deepcopy(student), 3
    # Rounded, the milestones are steps 3 and 6 of 10.
    rates = [0.1] * 3 + [0.05] * 3 + [0.025] * 4
    rows = plain_loop(expected, train, test, rates, seed)
    run = cktf.teach(
        student, train=train, test=test, epochs=2, seed=seed, out=tmp_path, show=False,
        overrides={
            "data.batch_size": 40, "runtime.precision": "float32",
            "optimizer": {
                "lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True, "clip": 0.9
            },
            "schedule": {"name": "multistep", "milestones": [0.28, 0.58], "gamma": 0.5},
        },
    )  # fmt: skip
    for row, wanted in zip(read_metrics(tmp_path), rows, strict=True):
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(run.student.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_momentum_does_not_follow_the_schedule(student):
    """Papers keep it; PyTorch's one-cycle schedule would change it."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    rates = build_scheduler(optimizer, ScheduleConfig(), lr=0.1, steps=10)
    momenta = []
    for _ in range(10):
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        rates.step()
    assert momenta == [0.9] * 10


def test_all_steps_are_timed_and_the_speed_is_of_the_main_phase(few_images, tmp_path, monkeypatch):
    # A clock that is read at both ends of a step: those of the first phase take 3 s, others 1 s.
    ticks = iter([3.0] * 10 + [1.0] * 30)
    clock = SimpleNamespace(perf_counter=partial(next, accumulate(ticks)))
    monkeypatch.setattr("cktf.engine.callbacks.time", clock)
    run = distill_few(few_images, tmp_path, method="ab+kd", overrides={"init_epochs": 1})
    rows = read_metrics(tmp_path)
    assert [row["seconds"] for row in rows] == [15, 5, 5]
    assert [row["images"] for row in rows] == [200] * 3
    assert [row["images_per_second"] for row in rows] == pytest.approx([200 / 15, 40, 40])
    assert (run.summary["seconds"], run.summary["images_per_second"]) == (25, 40)


class RecordCheckpoints(cktf.Callback):
    """Which checkpoints there are when it is called, and a stop at the first epoch's end."""

    def __init__(self):
        self.names = []

    def on_epoch_end(self, trainer, row):
        self.names.append([path.stem for path in trainer.run.checkpoints.paths])
        trainer.should_stop = True


def test_callbacks_run_before_a_checkpoint_and_stop_the_main_phase_alone(few_images, tmp_path):
    record = RecordCheckpoints()
    run = distill_few(
        few_images, tmp_path, method="ab+kd", epochs=3, callbacks=[record],
        overrides={"init_epochs": 2, "checkpoint.epochs": 1},
    )  # fmt: skip
    first, second = "checkpoint-000001-000000000", "checkpoint-000002-000000000"
    assert record.names == [[], [first], [first, second]]
    assert [row["phase"] for row in read_metrics(tmp_path)] == ["ab", "ab", "train"]
    assert len(list((run.folder / "checkpoints").glob("*.pt"))) == 2


def test_only_the_classifier_trains(few_images, tmp_path, student):
    """The rest keeps its parameters and its BatchNorm statistics, also without parameters."""
    student.a[1] = nn.BatchNorm2d(8, affine=False)
    before = copy_state(student)
    cktf.teach(
        student, train=few_images[0], epochs=1, out=tmp_path, show=False,
        overrides={"trains": "classifier", "data.batch_size": 40},
    )  # fmt: skip
    changed = {name for name, value in copy_state(student).items()
               if not torch.equal(value, before[name])}  # fmt: skip
    assert changed == {"fc.weight", "fc.bias"}


def test_an_evaluation_has_the_precision_of_training(few_images, tmp_path):
    class Watched(SmallNet):
        def forward(self, images):
            logits = super().forward(images)
            types.add((self.training, logits.dtype))
            return logits

    class Forget(cktf.Callback):
        """What was seen before the first step."""

        def on_epoch_start(self, trainer):
            types.clear()

        def on_epoch_end(self, trainer, row):
            self.types = set(types)

    types, forget = set(), Forget()
    cktf.teach(
        Watched(), train=few_images[0], test=few_images[1], epochs=1, out=tmp_path, show=False,
        overrides={"data.batch_size": 40, "runtime.precision": "bfloat16"}, callbacks=[forget],
    )  # fmt: skip
    assert forget.types == {(True, torch.bfloat16), (False, torch.bfloat16)}


def test_a_run_is_not_overwritten_nor_continued_with_another_recipe(few_images, tmp_path):
    distill_few(few_images, tmp_path, epochs=1)
    with pytest.raises(RecipeError, match="already holds a run"):
        distill_few(few_images, tmp_path, epochs=1)
    with pytest.raises(RecipeError, match="differs in: method"):
        distill_few(few_images, tmp_path, epochs=1, method="kd", resume=True)


def test_a_recipe_repeats_its_run(cifar_dir, tmp_path):
    fields = {
        "kind": "train", "model": "resnet8", "epochs": 1,
        "data": {"name": "cifar10", "dir": cifar_dir},
    }  # fmt: skip
    first = run_recipe(parse_recipe(fields), tmp_path / "first", show=False)
    again = parse_recipe(read_recipe(first.folder / "recipe.yaml"))
    second = run_recipe(again, tmp_path / "second", show=False)
    assert equal_weights(student_weights(first), student_weights(second))
    assert (first.folder / "recipe.yaml").read_text() == (second.folder / "recipe.yaml").read_text()
    accuracy, data = cktf.evaluate(first.folder)
    assert (accuracy.top1, data) == (first.summary["test_top1"], "cifar10")
    run = cktf.distill(
        first.folder, "resnet8", train="cifar10", method="kd", epochs=1, show=False,
        out=tmp_path / "third", overrides={"data.dir": cifar_dir, "optimizer.lr": 0.02},
    )  # fmt: skip
    assert run.summary["teacher_top1"] == first.summary["test_top1"]
    assert run.summary["compression_ratio"] == 1
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["optimizer"]["lr"] == 0.02


def test_the_log_names_the_initial_weights(cifar_dir, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(create("resnet8", 100).state_dict(), path)
    data = {"name": "cifar10", "dir": cifar_dir}
    recipe = parse_recipe({"kind": "train", "model": str(path), "epochs": 1, "data": data})
    run, components = prepare(recipe, tmp_path / "run")
    with start_run(recipe, components, run, show=False):
        pass
    log = (run.path / "log.txt").read_text()
    assert f"student: loaded resnet8 from {path}" in log
    assert "new classifier of 10 classes" in log


def as_tensors(data, count):
    return TensorDataset(data.images[:count].permute(0, 3, 1, 2).float() / 255, data.labels[:count])


def test_any_map_style_data_set(images, tmp_path):
    """It trains as the same images in an `ImageSet` do, bit for bit."""
    positions, plain = torch.randperm(1000)[:300], {"data.augment": False}
    train = Subset(as_tensors(images[0], 1000), positions.tolist())
    run = distill([train, as_tensors(images[1], 50)], tmp_path / "run", epochs=1)
    sets = [images[0].subset(positions), images[1].subset(torch.arange(50))]
    assert_equal_runs(run, distill(sets, tmp_path / "set", epochs=1, overrides=plain))
    assert run.summary["dataset"] == "custom"


def test_targets_must_be_the_labels_of_samples(images, tmp_path):
    class OtherTargets:
        """Its `targets` are not the labels of its samples."""

        def __init__(self, data):
            self.data, self.targets = data, ((data.tensors[1] + 1) % 10).tolist()

        def __len__(self):
            return len(self.data)

        def __getitem__(self, position):
            return self.data[position]

    train = OtherTargets(as_tensors(images[0], 128))
    with pytest.raises(DataError, match=r"Sample \d+ has the label \d, and by its `targets`"):
        distill([train, images[1]], tmp_path, method="kd")
    del train.targets
    assert distill([train, images[1]], tmp_path, method="kd", epochs=1).summary["epochs"] == 1


def test_overrides_may_be_nested(images, tmp_path):
    """Fields that they do not name stay, the data set above all."""
    run = distill(
        images, tmp_path / "run", method="kd", epochs=1,
        overrides={"data": {"batch_size": 50}, "optimizer": {"lr": 0.01}},
    )  # fmt: skip
    recipe = read_recipe(run.folder / "recipe.yaml")
    assert (recipe["data"]["name"], recipe["data"]["batch_size"]) == ("custom", 50)
    assert (recipe["optimizer"]["lr"], recipe["optimizer"]["momentum"]) == (0.01, 0.9)
    with pytest.raises(RecipeError, match="train: a data set was given, and the recipe names cif"):
        distill(images, tmp_path / "other", overrides={"data": {"name": "cifar10"}})


@pytest.mark.parametrize("kind", ["file", "module", "normalized module", "from 0 to 1"])
def test_images_that_a_data_set_normalizes_are_not_normalized_again(images, tmp_path, kind):
    """A file that does not say its mean sees them as they come; what says one is told of."""
    network = create("resnet8", 10).eval()
    path = tmp_path / "w.pth"
    torch.save(network.state_dict(), path)
    own = as_tensors(images[0], 64).tensors
    shift, scale = (0.0, 1.0) if kind == "from 0 to 1" else (0.5, 0.25)
    train = TensorDataset((own[0] - shift) / scale, own[1])
    teachers = {"file": str(path), "module": SmallNet()}
    teacher = teachers.get(kind, Normalized(SmallNet(), [0.5] * 3, [0.25] * 3))
    recipe = parse_recipe({
        "kind": "distill", "teacher": teacher if kind == "file" else "custom", "student": "custom",
        "method": "kd", "epochs": 1, "data": {"name": "custom"},
    })  # fmt: skip
    run, components = prepare(recipe, tmp_path / "run", UserObjects(teacher, SmallNet(), train))
    if kind == "file":
        seen = train.tensors[0][:4]
        torch.testing.assert_close(components.teacher.eval()(seen), network(seen))
    with start_run(recipe, components, run, show=False):
        pass
    log = run.path / "log.txt"
    told = log.exists() and "normalizes images from [0, 1] itself, and these run" in log.read_text()
    assert told == (kind == "normalized module")


RANGES = {
    "unit": (0, 1),
    "bytes": (0, 255),
    "normalized": (-2.1, 2.6),
    "divided again": (0, 1 / 255),
}


@pytest.mark.parametrize(
    ("train", "test"),
    [("unit", "unit"), ("unit", "bytes"), ("unit", "divided again"), ("bytes", "normalized"),
     ("normalized", "unit"), ("normalized", "normalized")],
)  # fmt: skip
def test_images_in_other_ranges_than_those_of_the_test_are_told_of(tmp_path, train, test):
    def data(name, labels):
        low, high = RANGES[name]
        return TensorDataset(low + (high - low) * torch.rand(8, 3, 8, 8), labels)

    labels = torch.arange(8) % 4
    run = cktf.teach(
        SmallNet(classes=4), train=data(train, labels), test=data(test, labels), epochs=1,
        out=tmp_path, show=False, overrides={"data.batch_size": 8, "optimizer.lr": 1e-5},
    )  # fmt: skip
    told = "Scale and normalize both alike" in (run.folder / "log.txt").read_text()
    assert told == (train != test)


@pytest.mark.parametrize("kind", ["image set", "map-style"])
def test_best_epoch_on_held_out_images_is_selected(few_images, tmp_path, monkeypatch, kind):
    """Of equals the earliest."""
    data = few_images[0] if kind == "image set" else as_tensors(few_images[0], 200)
    states, accuracies, tested = [], iter([50.0, 60.0, 60.0]), iter([70.0, 20.0, 30.0])

    def evaluate(self, network, loader):
        if network is not self.student:
            return real(self, network, loader)
        if loader is self.test:
            return Accuracy(next(tested), 100.0, loader.samples)
        assert loader.samples == 40  # a fifth, and none of them trained on
        assert self.train.samples == 160
        parts = [
            {image.numpy().tobytes() for image, _ in part.data} for part in (self.train, loader)
        ]
        assert not parts[0] & parts[1]
        states.append({k: v.clone() for k, v in network.state_dict().items()})
        return Accuracy(next(accuracies), 100.0, loader.samples)

    real = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    run = distill(
        [data, few_images[1]], tmp_path, method="kd", epochs=3, overrides={"data.validation": 0.2}
    )
    assert equal_weights(run.student.state_dict(), states[1])
    assert not equal_weights(states[1], states[2])
    rows = read_metrics(tmp_path)
    assert [row["validation_top1"] for row in rows] == [50.0, 60.0, 60.0]
    assert (run.summary["kept_epoch"], run.summary["validation_top1"]) == (2, 60.0)
    assert [row["test_top1"] for row in rows] == [70.0, 20.0, 30.0]
    names = "best_top1", "kept_test_top1", "test_top1"
    assert [run.summary[name] for name in names] == [70.0, 20.0, 30.0]
    assert equal_weights(load_file(run.folder / "student.safetensors"), states[1])


def with_nan(data, count=64):
    """One batch with NaN in image 17, which the dry run meets."""
    tensors = as_tensors(data, count)
    tensors.tensors[0][17, 0, 3, 3] = math.nan
    return tensors


class Stream(IterableDataset):
    """A data set without positions."""

    def __iter__(self):
        yield torch.rand(3, 32, 32), 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i: {"student": nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1),
         nn.Flatten())}, TapError, "has no feature map"),
        (lambda i: {"student": SmallNet(classes=4)}, DataError, "gives 4 logits, and the data"),
        (lambda i: {"test": []}, RecipeError, "length above 0"),
        (lambda i: {"test": "fashion-mini"}, RecipeError, "not the name of one"),
        (lambda i: {"train": DataLoader(as_tensors(i[0], 64), 64)}, RecipeError,
         "train: give the data set, not a loader of it"),
        (lambda i: {"test": DataLoader(as_tensors(i[0], 64), 64)}, RecipeError,
         "test: give the data set, not a loader"),
        (lambda i: {"train": None, "unlabeled": DataLoader(i[0], 64)}, RecipeError,
         "unlabeled: give the data set, not a loader"),
        (lambda i: {"train": Stream()}, RecipeError, "train: a map-style .* given Stream, which"),
        (lambda i: {"test": Stream()}, RecipeError, "test: a map-style .* given Stream, which"),
        (lambda i: {"test": {1, 2}}, RecipeError, "test: a map-style .*; given set"),
        (lambda i: {"train": {"train": i[0], "test": i[1]}}, RecipeError,
         "given dict with the keys train, test. Give one"),
        (lambda i: {"train": (torch.rand(99, 3, 32, 32), torch.zeros(99))}, RecipeError,
         "given images and labels apart"),
        (lambda i: {"train": Dataset()}, RecipeError, "train: a map-style .* given Dataset"),
        (lambda i: {"train": "fashion-mini", "test": i[1]}, RecipeError, "its own test images"),
        (lambda i: {"test": [(torch.rand(3, 32, 32), 10)]}, DataError,
         "test labels run from 10 .*: subtract 1 from each"),
        (lambda i: {"test": [(torch.rand(3, 32, 32), y) for y in (0, 99)]}, DataError,
         "test labels run from 0 to 99.* without gaps"),
        (lambda i: {"test": [(torch.rand(3, 32, 32), y) for y in range(11)]}, DataError,
         "test labels run from 0 to 10.* as many outputs"),
        (lambda i: {"test": [(torch.rand(3, 32, 32), 0.5)]}, DataError, "targets|Targets"),
        (lambda i: {"test": [(torch.rand(1, 32, 32), 1)]}, DataError, "cannot take images"),
        (lambda i: {"overrides": {"optimizer.nesterov": True, "optimizer.momentum": 0}},
         RecipeError, "momentum above 0"),
        (lambda i: {"student": SmallNet(channels=1)}, DataError, "student SmallNet cannot take"),
        (lambda i: {"teacher": SmallNet(channels=1)}, DataError, "teacher SmallNet cannot take"),
        (lambda i: {"teacher": SmallNet(classes=12)}, CktfError, "the teacher 12"),
        (lambda i: {"student": "resnet8", "train": as_tensors(i[0], 200)}, RecipeError, "own"),
        (lambda i: {"train": as_tensors(i[0], 20)}, RecipeError, "fewer than one batch of 64"),
        (lambda i: {"train": with_nan(i[0])}, DataError, "sample 17 holds NaN"),
        (lambda i: {"train": [(1, 2, 3)] * 100}, CktfError, "pair"),
        (lambda i: {"train": [(torch.rand(3, 32, 32), 0), (torch.rand(3, 32, 30), 1)] * 32},
         DataError, "The images of a batch have one size"),
        (lambda i: {"overrides": {"optimizer.lr": 1e9}}, TrainingError, "not finite"),
        (lambda i: {"overrides": {"optimizer.rate": 1}}, RecipeError, "no such field"),
        (lambda i: {"overrides": {"data.batch_size": 1}}, RecipeError, "equal to 2"),
        (lambda i: {"options": {"cktf": {"negatives": "many"}}}, RecipeError, "valid integer"),
    ],
)  # fmt: skip
def test_mistakes_in_python(images, tmp_path, change, error, message):
    arguments = {
        "teacher": SmallNet(), "student": SmallNet(), "train": images[0], "method": "cktf+kd",
        "epochs": 1, "options": OPTIONS, "out": tmp_path / "run", "show": False,
    } | change(images)  # fmt: skip
    with pytest.raises(error, match=message):
        cktf.distill(**arguments)
    assert error is TrainingError or not (tmp_path / "run").exists()


@pytest.fixture
def user_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_a_users_accelerator_is_unchanged(few_images, tmp_path, user_accelerator):
    distill_few(few_images, tmp_path, epochs=1, method="kd")
    assert user_accelerator.mixed_precision == "bf16"
    assert user_accelerator.gradient_accumulation_steps == 2
    assert Accelerator(cpu=True, mixed_precision="bf16").device.type == "cpu"


def test_an_accelerator_can_be_made_after_a_run(few_images, tmp_path):
    """A run leaves precision and accumulation of the process to its user."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    distill_few(few_images, tmp_path, epochs=1, method="kd")
    made = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    assert (made.mixed_precision, made.gradient_accumulation_steps) == ("bf16", 4)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_auto_is_cuda_or_the_cpu(monkeypatch):
    """Apple's GPUs know no float64, in which accuracies and losses are summed."""
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # where Accelerate takes one
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_runtime(RuntimeConfig()).device.type == "cpu"


def test_version_of_a_package_that_is_not_installed(images, tmp_path, monkeypatch):
    from_name = importlib.metadata.Distribution.from_name

    def raise_for_cktf(name):
        if name == "cktf":
            raise importlib.metadata.PackageNotFoundError(name)
        return from_name(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", raise_for_cktf)
    run = cktf.teach(
        SmallNet(), train=as_tensors(images[0], 64), epochs=1, out=tmp_path / "run", show=False,
        overrides={"runtime.track": "none"},
    )  # fmt: skip
    versions = run.summary["versions"]
    assert versions["cktf"] == cktf.__version__
    # Build tags such as +cu121 are left out.
    assert versions["torch"] == importlib.metadata.version("torch").partition("+")[0]


def test_a_finished_run_is_read_not_repeated(few_images, tmp_path, monkeypatch):
    first = distill_few(few_images, tmp_path, epochs=1)
    monkeypatch.setattr(Trainer, "fit", None)
    torch.manual_seed(5)
    again = distill_few(few_images, tmp_path, epochs=1, resume=True, student=SmallNet())
    assert again.summary == first.summary
    assert equal_weights(student_weights(first), student_weights(again))
    assert not again.student.training


def test_checkpoints_that_cannot_be_read_are_not_passed_over(few_images, tmp_path):
    distill_few(few_images, tmp_path, epochs=1)
    (tmp_path / "summary.json").unlink()
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(RunFolderError, match="None of the checkpoints"):
        distill_few(few_images, tmp_path, epochs=1, resume=True)


def test_a_half_written_row_is_dropped(tmp_path):
    run = RunFolder(tmp_path)
    run.record({"epoch": 1})
    with run.metrics.open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert run.rows() == [{"epoch": 1}]


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("multistep", 0, 0.05), ("multistep", 74, 0.05), ("multistep", 75, 0.005),
        ("multistep", 90, 0.0005), ("multistep", 119, 0.00005),
        ("onecycle", 0, 0.05 / 25), ("onecycle", 35, 0.05), ("onecycle", 119, 0.05 / 25 / 1e4),
    ],
)  # fmt: skip
def test_schedules(name, at, expected):
    """120 steps: the papers' 150, 180, 210 of 240 epochs are 75, 90, 105 of them."""
    optimizer = torch.optim.SGD(create("resnet8", 2).parameters(), lr=0.05)
    rates = build_scheduler(optimizer, ScheduleConfig(name=name), lr=0.05, steps=120)
    for _ in range(at):
        optimizer.step()
        rates.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("student_of_run", ["module", "name"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_run_of_this_session_is_a_teacher(few_images, tmp_path, student_of_run, as_folder):
    """Also where its network was made in Python, which its folder alone does not build."""
    small = {"data.batch_size": 100, "runtime.track": "none"}
    images = few_images[0]
    network = SmallNet() if student_of_run == "module" else create("resnet8", 10)
    first = cktf.teach(
        network, train=images, epochs=1, out=tmp_path / "t", overrides=small, show=False
    )
    student = SmallNet()
    second = cktf.distill(
        str(first.folder) if as_folder else first, student, train=images, method="kd", epochs=1,
        out=tmp_path / "s", overrides=small, show=False,
    )  # fmt: skip
    assert second.summary["teacher"] == ("SmallNet" if student_of_run == "module" else "resnet8")
    assert first.student is network
    with pytest.raises(CktfError, match="cannot be built from its name"):
        cktf.models.load_network(second.folder / "student.safetensors")


def test_a_run_is_independent_of_the_users_defaults(small_run, users_default):
    method = "cktf+crd+ab+at+cc+fitnet+fsp+ft+nst+rkd+vid+kd"
    with torch.device("cpu"):
        networks = {"teacher": SmallNet().float(), "student": SmallNet().float()}
        options = {name: {"negatives": 16} for name in ("cktf", "crd")}
    run = small_run(method=method, epochs=1, options=options, **networks)
    assert {p.dtype for p in run.student.parameters()} == {torch.float32}
    assert run.summary["test_images"] == 200
