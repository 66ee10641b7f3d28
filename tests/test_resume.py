"""A run that stops anywhere goes on to the same result, bit for bit."""

import io
import json
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from small_runs import TIMES, SmallNet, assert_equal_runs, read_metrics, stop_after_steps
from torch.utils.data import Dataset

import cktf
from cktf.data import DatasetLoader, MemoryLoader
from cktf.engine import Trainer, TrainStep
from cktf.engine.progress import ProgressBar
from cktf.errors import Interrupted, RecipeError, RunFolderError, TrainingError
from cktf.models import create
from cktf.recipes import parse_recipe
from cktf.signals import catch_stop_signals, stop_signal
from cktf.workflows import run_recipe
from cktf.workflows.teacher_ref import read_teacher_ref

METHODS = {
    "cktf+kd": {"method": "cktf+kd"},
    "queue": {
        "method": "cktf",
        "options": {"cktf": {"memory": "queue", "queue_size": 96, "negatives": 32}},
    },
    "ab+crd": {
        "method": "ab+crd",
        "options": {"crd": {"estimator": "shared", "negatives": 32, "renormalize": [2]}},
        "overrides": {"init_epochs": 1},
    },
    "validation": {"method": "kd", "overrides": {"data.validation": 0.2, "data.batch_size": 32}},
    "forward": {
        "method": "crd",
        "options": {"crd": {"init": "forward", "critic": "infonce", "negatives": 32}},
    },
}


def last_state(run):
    path = max((run.folder / "checkpoints").glob("*.pt"))
    state = torch.load(path, weights_only=True)
    return state | {"rows": json.loads(state["rows"])}


def equal_but_for_times(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        names = a.keys() - TIMES
        return a.keys() == b.keys() and all(equal_but_for_times(a[k], b[k]) for k in names)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal_but_for_times, a, b))
    return a == b


@pytest.fixture
def fewer_images(few_images):
    return [few_images[0].subset(torch.arange(120)), few_images[1]]


def test_a_resumed_run_needs_its_data_and_its_teacher(small_run, interrupted_run, fewer_images):
    """Both come from Python and have no name."""
    torch.manual_seed(7)
    other_teacher = SmallNet(width=16)
    interrupted_run(3)
    for _ in ("interrupted", "finished"):
        with pytest.raises(RunFolderError, match=r"other training images \(200; now 120"):
            small_run(data=fewer_images, resume=True)
        with pytest.raises(RunFolderError, match="began with other teacher"):
            small_run(teacher=other_teacher, resume=True)
        small_run(resume=True)


def test_a_run_that_failed_before_its_first_save_may_change(small_run, fewer_images, monkeypatch):
    def fail(*_):
        raise TrainingError("The loss is not finite.")

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "forward", fail)
        with pytest.raises(TrainingError):
            small_run()
    small_run(data=fewer_images)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_from_any_step(small_run, monkeypatch, name):
    settings = METHODS[name]
    whole = small_run("whole", **settings)
    run, stops = None, 0
    while run is None:
        # Stops at every third step, so that each of the five in an epoch is met.
        with monkeypatch.context() as patch:
            stop_after_steps(patch, 3)
            try:
                run = small_run("cut", resume=True, **settings)
            except Interrupted:
                stops += 1
    assert stops == (5 if "ab" in name else 3)
    assert_equal_runs(whole, run)
    assert equal_but_for_times(last_state(whole), last_state(run))


def interrupt_first_evaluation(monkeypatch):
    """Send SIGINT to this process in the first evaluation of the student."""
    evaluate, calls = Trainer.evaluate, []

    def interrupted_evaluate(self, network, loader):
        if network is self.student and not calls:
            calls.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, network, loader)

    monkeypatch.setattr(Trainer, "evaluate", interrupted_evaluate)


@pytest.mark.parametrize("draws", [False, True])
def test_an_interrupted_evaluation_is_repeated(small_run, tmp_path, monkeypatch, draws):
    """Its draws must not advance the generators of training, whose images draw too."""
    data = [RandomImages(), RandomImages()]
    random_data = {"data": data, "method": "ce", "overrides": {"data.batch_size": 8}}
    settings, steps = (random_data, 3) if draws else ({}, 5)
    whole = small_run("whole", **settings)
    interrupt_first_evaluation(monkeypatch)
    with pytest.raises(Interrupted, match=f"SIGINT after step {steps} of epoch 1; saved"):
        small_run("cut", **settings)
    assert not read_metrics(tmp_path / "cut")
    assert_equal_runs(whole, small_run("cut", resume=True, **settings))


def test_the_clock_saves_within_an_epoch(interrupted_run, tmp_path):
    interrupted_run(4, overrides={"checkpoint.minutes": 1e-9})
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"checkpoint-000000-{n:09d}.{kind}" for n in (3, 4) for kind in ("json", "pt")]


def test_without_minutes_only_the_end_is_saved(small_run):
    run = small_run(overrides={"checkpoint.minutes": 0})
    names = [p.name for p in (run.folder / "checkpoints").glob("*.pt")]
    assert names == ["checkpoint-000002-000000000.pt"]


class WatchedBar(ProgressBar):
    """A bar as in a terminal, and the steps that it shows."""

    def __init__(self):
        super().__init__("title")
        self._console, self.steps = Console(file=io.StringIO(), force_terminal=True), []

    def on_phase_start(self, trainer):
        super().on_phase_start(trainer)
        self.record()

    def on_epoch_end(self, trainer, row):
        super().on_epoch_end(trainer, row)
        self.record()

    def record(self):
        (task,) = self._bar.tasks
        self.steps.append((task.completed, task.total, task.fields["epoch"]))


def test_the_bar_goes_on_where_the_run_does(small_run, interrupted_run):
    bar = WatchedBar()
    interrupted_run(7, epochs=3)
    small_run(epochs=3, resume=True, callbacks=[bar])
    assert bar.steps == [(7, 15, 1), (10, 15, 2), (15, 15, 3)]


def test_metrics_come_from_the_checkpoint(small_run, interrupted_run, tmp_path):
    """Lost rows, and rows of epochs that are trained again, do not matter."""
    whole = small_run("whole")
    interrupted_run(7, "cut")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 1
    metrics.write_text('{"epoch": 9}\n{"epo')
    assert_equal_runs(whole, small_run("cut", resume=True))


class RandomImages(Dataset):
    """A user's data set that draws from the generators of torch, NumPy and random."""

    def __len__(self):
        return 24

    def __getitem__(self, position):
        noise = torch.rand(1) + np.random.rand() + random.random()
        return torch.full((3, 8, 8), float(noise)), position % 3


@pytest.mark.parametrize("workers", [0, 2])
def test_random_draws_of_a_data_set_go_on(workers):
    loader = DatasetLoader(RandomImages(), 4, train=True, workers=workers, seed=3)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    batches = loader.epoch(2)
    first = [next(batches) for _ in range(3)]
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    rest = list(batches)
    torch.set_rng_state(state[0]), np.random.set_state(state[1]), random.setstate(state[2])
    assert (len(first), len(rest)) == (3, 3)
    assert_equal_batches(rest, loader.epoch(2, start=3))


@pytest.mark.parametrize("augment", [False, True])
def test_batches_from_any_start(few_images, augment):
    loader = MemoryLoader(few_images[0], 48, train=True, augment=augment, seed=5)
    whole = list(loader.epoch(4))
    for start in range(len(loader) + 1):
        assert_equal_batches(whole[start:], loader.epoch(4, start=start))


def assert_equal_batches(batches, others):
    for a, b in zip(batches, others, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


def test_two_runs_do_not_share_a_folder(small_run, monkeypatch):
    step, calls = Trainer.train_step, []

    def start_second_run(self):
        step(self)
        if not calls:
            calls.append(1)
            with pytest.raises(RunFolderError, match=r"being written by another run \(process"):
                small_run(resume=True)

    monkeypatch.setattr(Trainer, "train_step", start_second_run)
    small_run()
    assert calls


def test_the_folder_is_free_after_a_failure(small_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            small_run()
    assert small_run().summary["epochs"] == 2


def test_a_checkpoint_of_another_recipe_is_refused(small_run, interrupted_run, tmp_path):
    interrupted_run(3)
    with pytest.raises(RecipeError, match=r"differs in: optimizer\.lr"):
        small_run(resume=True, overrides={"optimizer.lr": 0.3})
    # As if a recipe had been put in the folder by hand.
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(cktf.errors.CheckpointError, match="saved under another recipe"):
        small_run(resume=True, overrides={"optimizer.lr": 0.3})


def test_signals_are_heard_only_while_a_run_listens():
    before = signal.getsignal(signal.SIGTERM)
    with catch_stop_signals():
        with catch_stop_signals():
            assert stop_signal() is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_signal() == "SIGTERM"
        assert stop_signal() == "SIGTERM"
    assert stop_signal() is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_another_thread_leaves_signals_alone():
    before, handlers = signal.getsignal(signal.SIGTERM), []

    def run():
        with catch_stop_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_teacher_weights_are_part_of_a_run(cifar_dir, tmp_path, monkeypatch):
    """Other weights at their path, or the same in another network, are another teacher."""
    file = tmp_path / "teacher.safetensors"

    def write_weights(value):
        network = create("resnet8", 10)
        for parameter in network.parameters():
            parameter.data.fill_(value)
        save_file(network.state_dict(), file)

    def go_on(teacher="resnet8", file=file):
        fields = {
            "kind": "distill", "teacher": teacher, "teacher_weights": str(file),
            "student": "resnet8", "method": "kd", "epochs": 1,
            "data": {"name": "cifar10", "dir": cifar_dir, "batch_size": 50},
        }  # fmt: skip
        return run_recipe(parse_recipe(fields), tmp_path / "run", resume=True, show=False)

    write_weights(0.01)
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 2)
        with pytest.raises(Interrupted):
            go_on()
    assert read_teacher_ref(tmp_path / "run").teacher_weights == str(file)
    before = file.read_bytes()
    write_weights(0.02)
    with pytest.raises(RecipeError, match="differs in: the teacher's weights"):
        go_on()
    file.write_bytes(before)
    with pytest.raises(RecipeError, match="differs in: the teacher's weights"):
        go_on("resnet8()")
    assert go_on(file=file.rename(tmp_path / "moved.safetensors")).summary["epochs"] == 1
