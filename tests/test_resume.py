"""A run that stops anywhere goes on to the same result, bit for bit."""

import json
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import (
    OPTIONS,
    TIMES,
    SmallNet,
    distill_few,
    equal_weights,
    read_metrics,
    read_untimed_metrics,
    stop_after_steps,
    student_weights,
)
from torch.utils.data import Dataset

import cktf
from cktf.data import DatasetLoader, MemoryLoader
from cktf.engine import Trainer
from cktf.errors import Interrupted, RecipeError, RunFolderError, TrainingError
from cktf.models import create
from cktf.recipes import parse_recipe
from cktf.signals import catch_stop_signals, stop_signal
from cktf.workflows import run_recipe
from cktf.workflows.teacher_ref import read_teacher_ref

METHODS = {
    "cktf+kd": {"options": OPTIONS},
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


def last_state(folder):
    path = max((folder / "checkpoints").glob("*.pt"))
    return torch.load(path, weights_only=True)


def same(a, b):
    """Whether two states hold the same, but for times."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, str) and a.startswith("["):
        return [{k: v for k, v in r.items() if k not in TIMES} for r in json.loads(a)] == [
            {k: v for k, v in r.items() if k not in TIMES} for r in json.loads(b)
        ]
    return a == b


def test_a_run_goes_on_with_what_it_began_with(few_images, tmp_path, monkeypatch):
    """A teacher made in Python has no name, and a data set's says nothing of how many there are."""
    torch.manual_seed(7)
    other = SmallNet(width=16)
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 3)
        with pytest.raises(Interrupted):
            distill_few(few_images, tmp_path, method="kd")
    for finished in (False, True):
        with pytest.raises(RunFolderError, match=r"other training images \(200; now 120"):
            distill_few(
                [few_images[0].subset(torch.arange(120)), few_images[1]],
                tmp_path,
                method="kd",
                resume=True,
            )
        with pytest.raises(RunFolderError, match="began with other teacher"):
            cktf.distill(
                other, SmallNet(), train=few_images[0], test=few_images[1], method="kd",
                epochs=2, out=tmp_path, show=False, overrides={"data.batch_size": 40}, resume=True,
            )  # fmt: skip
        if not finished:
            distill_few(few_images, tmp_path, method="kd", resume=True)


def test_what_failed_before_it_saved_anything_binds_nothing(few_images, tmp_path, monkeypatch):
    def broken(*_):
        raise TrainingError("The loss is not finite.")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_loss", broken)
        with pytest.raises(TrainingError):
            distill_few(few_images, tmp_path, method="kd")
    distill_few([few_images[0].subset(torch.arange(120)), few_images[1]], tmp_path, method="kd")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_goes_on_from_any_step(few_images, tmp_path, monkeypatch, name):
    settings = METHODS[name]
    whole = distill_few(few_images, tmp_path / "whole", **settings)
    run, stops = None, 0
    while run is None:
        # Stops at every third step, so that each of the five in an epoch is met.
        with monkeypatch.context() as patch:
            stop_after_steps(patch, 3)
            try:
                run = distill_few(few_images, tmp_path / "cut", resume=True, **settings)
            except Interrupted:
                stops += 1
    assert stops == (5 if "ab" in name else 3)
    assert equal_weights(student_weights(whole), student_weights(run))
    assert read_untimed_metrics(whole.folder) == read_untimed_metrics(run.folder)
    assert same(last_state(whole.folder), last_state(run.folder))


def interrupt_first_evaluation(monkeypatch):
    """SIGINT to this process, in the first evaluation that heeds it."""
    evaluate, calls = Trainer.evaluate, []

    def stopped(self, network, loader, between=None):
        if between is not None and not calls:
            calls.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, network, loader, between)

    monkeypatch.setattr(Trainer, "evaluate", stopped)


def test_an_evaluation_is_broken_off_and_done_again(few_images, tmp_path, monkeypatch):
    whole = distill_few(few_images, tmp_path / "whole", method="kd")
    interrupt_first_evaluation(monkeypatch)
    with pytest.raises(Interrupted, match="SIGINT after step 5 of epoch 1; saved"):
        distill_few(few_images, tmp_path / "cut", method="kd")
    assert not read_metrics(tmp_path / "cut")
    run = distill_few(few_images, tmp_path / "cut", method="kd", resume=True)
    assert equal_weights(student_weights(whole), student_weights(run))
    assert read_untimed_metrics(whole.folder) == read_untimed_metrics(run.folder)


def test_the_clock_saves_within_an_epoch(few_images, tmp_path, monkeypatch):
    stop_after_steps(monkeypatch, 4)
    with pytest.raises(Interrupted):
        distill_few(
            few_images, tmp_path / "run", method="kd", overrides={"checkpoint.minutes": 1e-9}
        )
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [f"checkpoint-000000-{n:09d}.{kind}" for n in (3, 4) for kind in ("json", "pt")]


def test_without_minutes_only_the_end_is_saved(few_images, tmp_path):
    run = distill_few(
        few_images, tmp_path / "run", method="kd", overrides={"checkpoint.minutes": 0}
    )
    assert [p.name for p in (run.folder / "checkpoints").glob("*.pt")] == [
        "checkpoint-000002-000000000.pt"
    ]


def test_the_record_comes_from_the_checkpoint(few_images, tmp_path, monkeypatch):
    """Lines that were lost or are of epochs that are trained again do not matter."""
    whole = distill_few(few_images, tmp_path / "whole", method="kd")
    stop_after_steps(monkeypatch, 7)
    with pytest.raises(Interrupted):
        distill_few(few_images, tmp_path / "cut", method="kd")
    metrics = tmp_path / "cut" / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 1
    metrics.write_text('{"epoch": 9}\n{"epo')
    run = distill_few(few_images, tmp_path / "cut", method="kd", resume=True)
    assert read_untimed_metrics(whole.folder) == read_untimed_metrics(run.folder)


class Draws(Dataset):
    """A user's data set that draws at random from all three generators."""

    def __len__(self):
        return 24

    def __getitem__(self, position):
        noise = torch.rand(1) + np.random.rand() + random.random()
        return torch.full((3, 8, 8), float(noise)), position % 3


def test_draws_of_an_evaluation_that_is_broken_off(tmp_path, monkeypatch):
    """They are none of training's, whose images draw too."""
    settings = {"method": "ce", "overrides": {"data.batch_size": 8}}
    whole = distill_few([Draws(), Draws()], tmp_path / "whole", **settings)
    interrupt_first_evaluation(monkeypatch)
    with pytest.raises(Interrupted, match="SIGINT after step 3 of epoch 1; saved"):
        distill_few([Draws(), Draws()], tmp_path / "cut", **settings)
    run = distill_few([Draws(), Draws()], tmp_path / "cut", resume=True, **settings)
    assert equal_weights(student_weights(whole), student_weights(run))
    assert read_untimed_metrics(whole.folder) == read_untimed_metrics(run.folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_draws_of_a_data_set_go_on(workers):
    loader = DatasetLoader(Draws(), 4, train=True, workers=workers, seed=3)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    batches = loader.epoch(2)
    first = [next(batches) for _ in range(3)]
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    rest = list(batches)
    torch.set_rng_state(state[0]), np.random.set_state(state[1]), random.setstate(state[2])
    again = list(loader.epoch(2, start=3))
    assert (len(first), len(rest), len(again)) == (3, 3, 3)
    for a, b in zip(rest, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


@pytest.mark.parametrize("augment", [False, True])
def test_batches_from_any_start(few_images, augment):
    loader = MemoryLoader(few_images[0], 48, train=True, augment=augment, seed=5)
    whole = list(loader.epoch(4))
    for start in range(len(loader) + 1):
        part = list(loader.epoch(4, start=start))
        assert len(part) == len(whole) - start
        for a, b in zip(whole[start:], part, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.index, b.index)


def test_two_runs_do_not_share_a_folder(few_images, tmp_path, monkeypatch):
    step, found = Trainer.train_step, []

    def second(self):
        step(self)
        if not found:
            found.append(1)
            with pytest.raises(RunFolderError, match=r"being written by another run \(process"):
                distill_few(few_images, tmp_path / "run", method="kd", resume=True)

    monkeypatch.setattr(Trainer, "train_step", second)
    distill_few(few_images, tmp_path / "run", method="kd")
    assert found


def test_the_folder_is_free_after_a_failure(few_images, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            distill_few(few_images, tmp_path / "run", method="kd")
    assert distill_few(few_images, tmp_path / "run", method="kd").summary["epochs"] == 2


def test_a_checkpoint_of_another_recipe_is_refused(few_images, tmp_path, monkeypatch):
    stop_after_steps(monkeypatch, 3)
    with pytest.raises(Interrupted):
        distill_few(few_images, tmp_path / "run", method="kd")
    monkeypatch.undo()
    with pytest.raises(RecipeError, match=r"differs in: optimizer\.lr"):
        distill_few(
            few_images, tmp_path / "run", method="kd", resume=True, overrides={"optimizer.lr": 0.3}
        )
    # As if a recipe had been put in the folder by hand.
    (tmp_path / "run" / "recipe.yaml").unlink()
    with pytest.raises(cktf.errors.CheckpointError, match="saved under another recipe"):
        distill_few(
            few_images, tmp_path / "run", method="kd", resume=True, overrides={"optimizer.lr": 0.3}
        )


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
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with catch_stop_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def test_weights_given_beside_a_network_are_the_teachers_too(tmp_path, monkeypatch):
    """Others at their path are another teacher, and so are the same in another network."""
    file = tmp_path / "teacher.safetensors"

    def put(value):
        network = create("resnet8", 10)
        for parameter in network.parameters():
            parameter.data.fill_(value)
        save_file(network.state_dict(), file)

    def go_on(teacher="resnet8", file=file):
        recipe = parse_recipe(
            {
                "kind": "distill", "teacher": teacher, "teacher_weights": str(file),
                "student": "resnet8", "method": "kd", "epochs": 1,
                "data": {"name": "fashion-mini", "per_class": 8, "batch_size": 16},
            }
        )  # fmt: skip
        return run_recipe(recipe, tmp_path / "run", resume=True, show=False)

    put(0.01)
    with monkeypatch.context() as patch:
        stop_after_steps(patch, 2)
        with pytest.raises(Interrupted):
            go_on()
    assert read_teacher_ref(tmp_path / "run").teacher_weights == str(file)
    before = file.read_bytes()
    put(0.02)
    with pytest.raises(RecipeError, match="differs in: the teacher's weights"):
        go_on()
    file.write_bytes(before)
    with pytest.raises(RecipeError, match="differs in: the teacher's weights"):
        go_on("resnet8()")
    assert go_on(file=file.rename(tmp_path / "moved.safetensors")).summary["epochs"] == 1
