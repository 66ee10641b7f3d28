"""Losses and gradients that are not finite, gradients clipped, memory that is not there."""

import math

import pytest
import torch
from small_runs import (
    SmallNet,
    copy_state,
    equal_weights,
    read_untimed_metrics,
    student_weights,
)

import cktf
from cktf.engine import Trainer, TrainStep
from cktf.engine.epoch_metrics import EpochMetrics, gradient_norm
from cktf.engine.memory import is_out_of_memory
from cktf.errors import TrainingError
from cktf.objectives import CKTF, CRD, Loss
from cktf.taps import FeaturePaths, Tap

SKIP = {"runtime.on_nonfinite": "skip"}


def change_loss(monkeypatch, steps, change):
    """Apply `change` to the loss of some steps, counted from 1."""
    forward, calls = TrainStep.forward, []

    def changed_forward(self, *inputs):
        calls.append(1)
        loss = forward(self, *inputs)
        return change(loss) if len(calls) in steps else loss

    monkeypatch.setattr(TrainStep, "forward", changed_forward)


def nan_in(term):
    def change(loss):
        bad = {term: torch.tensor(math.nan)}
        return Loss(loss.total * math.nan, loss.terms | bad)

    return change


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def bad_gradient(loss):
    return Loss(_BadGradient.apply(loss.total), loss.terms)


def test_a_loss_that_is_not_finite_is_an_error(small_run, monkeypatch):
    change_loss(monkeypatch, {8}, nan_in("kd"))
    with pytest.raises(TrainingError) as caught:
        small_run(overrides={"checkpoint.epochs": 1})
    text = str(caught.value)
    assert "not finite at step 3 of epoch 2; it comes from: kd." in text
    assert "The learning rate was 0.0" in text
    assert "--on-nonfinite skip" in text
    # The last good checkpoint is there, and the run goes on from it.
    monkeypatch.undo()
    whole = small_run("whole", overrides={"checkpoint.epochs": 1})
    done = small_run(resume=True, overrides={"checkpoint.epochs": 1} | SKIP)
    assert equal_weights(student_weights(whole), student_weights(done))


def test_a_gradient_that_is_not_finite_is_an_error(small_run, monkeypatch):
    change_loss(monkeypatch, {2}, bad_gradient)
    with pytest.raises(TrainingError, match=r"gradient is not finite at step 2 of epoch 1; the lo"):
        small_run()


def test_values_on_a_gpu_are_checked_before_a_save(small_run, tmp_path, monkeypatch):
    """A GPU's steps do not wait: the error comes later, names its step, and nothing is saved."""
    change_loss(monkeypatch, {4}, nan_in("ce"))
    start_epoch = Trainer.start_epoch

    def as_on_a_gpu(self, number):
        self._check_every_step = False
        start_epoch(self, number)

    monkeypatch.setattr(Trainer, "start_epoch", as_on_a_gpu)
    with pytest.raises(TrainingError, match=r"at step 4 of epoch 1; it comes from: ce") as caught:
        small_run(overrides={"checkpoint.epochs": 1})
    # The weights are not finite either by now, which says nothing of the cause.
    assert "Likely cause: not known, since it was seen some steps later" in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_images_with_nan_are_named(small_run, monkeypatch):
    forward = TrainStep.forward

    def forward_with_nan(self, batch, teacher=None):
        batch.images[1] = math.nan
        return forward(self, batch, teacher)

    monkeypatch.setattr(TrainStep, "forward", forward_with_nan)
    with pytest.raises(TrainingError, match=r"the images of samples \[\d+\] hold NaN"):
        small_run()


@pytest.mark.parametrize("change", [nan_in("ce"), bad_gradient])
@pytest.mark.parametrize("method", ["cktf+kd", "queue"])
def test_a_skipped_step_changes_nothing_but_the_schedule(small_run, monkeypatch, change, method):
    queue = {"memory": "queue", "queue_size": 96} if method == "queue" else {}
    states = []
    step = Trainer.train_step

    def compare_states(self):
        networks, skipped = (self.objective, self.student), self.metrics.skipped
        before = [copy_state(network) for network in networks]
        step(self)
        if self.metrics.skipped > skipped:
            states.append(all(map(equal_weights, before, map(copy_state, networks))))

    monkeypatch.setattr(Trainer, "train_step", compare_states)
    # The first step too: it would set the normalizers.
    change_loss(monkeypatch, {1, 7}, change)
    run = small_run(method="cktf+kd", options={"cktf": {"negatives": 32} | queue}, overrides=SKIP)
    assert states == [True, True]
    rows = read_untimed_metrics(run.folder)
    assert [row["skipped"] for row in rows] == [1, 1]
    assert all(math.isfinite(value) for row in rows for value in row["terms"].values())
    assert run.summary["skipped_steps"] == 2
    assert all(bool(v.isfinite().all()) for v in student_weights(run).values())


def test_buffers_that_a_forward_pass_changes_are_restored():
    """Those of the student, saved or not, and of the objective's BatchNorm; no memory is copied."""
    network = torch.nn.Linear(2, 2)
    network.register_buffer("steps", torch.zeros(()), persistent=False)
    norm = torch.nn.BatchNorm2d(3)
    objective = torch.nn.ModuleList([CRD(4, 5, 1000, embedding_dim=8, negatives=3), norm])
    paths = FeaturePaths(embedding="0:input")
    step = TrainStep(objective, Tap(torch.nn.Sequential(network), paths, []), None, None)
    buffers = step.forward_buffers()
    assert {id(b) for _, _, b in buffers} == {id(network.steps), *map(id, norm.buffers())}


def test_means_are_over_the_steps_that_were_taken():
    metrics = EpochMetrics()
    for total, norm in ((1.0, 3.0), (2.0, 5.0), (6.0, 1.0)):
        loss = Loss(torch.tensor(total), {"kd": torch.tensor(total / 2)})
        metrics.add(metrics.stack(loss, torch.tensor(norm)), lr=total)
        metrics.skip(epoch=1, step=9)
    assert metrics.means() == {
        "loss": 3.0, "gradient_norm": 3.0, "terms": {"kd": 1.5}, "lr": 6.0, "skipped": 3
    }  # fmt: skip


def test_skipping_changes_nothing_where_all_is_finite(small_run):
    a = small_run("a", method="cktf+kd")
    b = small_run("b", method="cktf+kd", overrides=SKIP)
    assert equal_weights(student_weights(a), student_weights(b))


def test_skipping_ends_where_nothing_is_finite(small_run, monkeypatch):
    change_loss(monkeypatch, set(range(3, 1000)), nan_in("ce"))
    monkeypatch.setattr("cktf.engine.epoch_metrics._MAX_SKIPPED_IN_A_ROW", 6)
    with pytest.raises(TrainingError, match="6 steps in a row were not finite"):
        small_run(overrides=SKIP)
    monkeypatch.setattr("cktf.engine.epoch_metrics._MAX_SKIPPED_IN_A_ROW", 600)
    monkeypatch.undo()
    change_loss(monkeypatch, set(range(1, 1000)), nan_in("ce"))
    with pytest.raises(TrainingError, match="all were skipped"):
        small_run("other", overrides=SKIP)


def test_the_gradient_is_clipped_as_a_whole():
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    gradients = [torch.tensor([3.0, 0, 0]), torch.tensor([0, 0, 4.0, 0])]
    for clip, scale in ((None, 1), (10, 1), (1, 1 / 5)):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        assert float(gradient_norm(parameters, clip)) == 5
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient * scale)


def test_clipping_is_part_of_a_run(small_run):
    free = small_run("free")
    clipped = small_run("clipped", overrides={"optimizer.clip": 0.01})
    loose = small_run("loose", overrides={"optimizer.clip": 1e9})
    assert not equal_weights(student_weights(free), student_weights(clipped))
    assert equal_weights(student_weights(free), student_weights(loose))
    assert read_untimed_metrics(free.folder)[0]["gradient_norm"] > 0.1


def run_out_of_memory(self, *args, **named):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_says_what_to_change(small_run, monkeypatch):
    monkeypatch.setattr(CKTF, "loss", run_out_of_memory)
    with pytest.raises(TrainingError) as caught:
        small_run(method="cktf+kd")
    text = str(caught.value)
    for part in ("data.batch_size=20", "options.METHOD, where contrast takes banks", "2.00 GiB"):
        assert part in text


def test_out_of_memory_on_the_cpu(small_run, monkeypatch):
    """The allocator's own error."""
    monkeypatch.setattr(TrainStep, "forward", lambda *args: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(TrainingError, match="Memory of cpu is not enough for batches of 40"):
        small_run()
    assert not is_out_of_memory(ValueError("x"))
    assert not is_out_of_memory(RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"))
    for library in ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
                    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
                    "CUDA error: out of memory"):  # fmt: skip
        assert is_out_of_memory(RuntimeError(library))


def test_out_of_memory_in_evaluation(small_run, monkeypatch):
    monkeypatch.setattr(Trainer, "evaluate", run_out_of_memory)
    with pytest.raises(TrainingError, match=r"not enough for batches of 500 .*2\.00 GiB") as caught:
        small_run()
    # A recipe cannot change the batch size of evaluation.
    assert "batch_size" not in str(caught.value)


def test_a_network_with_frozen_parts(few_images, tmp_path):
    network = SmallNet()
    network.a.requires_grad_(False)
    run = cktf.teach(
        network, train=few_images[0], epochs=1, out=tmp_path / "run", show=False,
        overrides=SKIP | {"optimizer.clip": 1.0},
    )  # fmt: skip
    assert run.summary["skipped_steps"] == 0
