"""Losses and gradients that are not finite, gradients clipped, memory that is not there."""

import math

import pytest
import torch
from small_runs import SmallNet, distill_few, equal_weights, read_untimed_metrics, student_weights

import cktf
from cktf.engine import Trainer, TrainStep
from cktf.engine.epoch_metrics import EpochMetrics, gradient_norm
from cktf.engine.memory import is_out_of_memory, out_of_memory
from cktf.errors import TrainingError
from cktf.objectives import CRD, Loss
from cktf.taps import FeaturePaths, Tap

SKIP = {"runtime.on_nonfinite": "skip"}


def spoil(monkeypatch, steps, change):
    """Change what the objective gives in some steps, counted from 1."""
    forward, done = TrainStep.forward, []

    def counted(self, batch):
        done.append(1)
        loss = forward(self, batch)
        return change(loss) if len(done) in steps else loss

    monkeypatch.setattr(TrainStep, "forward", counted)


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


def test_a_loss_that_is_not_finite_is_told(few_images, tmp_path, monkeypatch):
    spoil(monkeypatch, {8}, nan_in("kd"))
    with pytest.raises(TrainingError) as caught:
        distill_few(few_images, tmp_path / "run", method="kd", overrides={"checkpoint.epochs": 1})
    text = str(caught.value)
    assert "not finite at step 3 of epoch 2; it comes from: kd." in text
    assert "The learning rate was 0.0" in text
    assert "--on-nonfinite skip" in text
    # The last good checkpoint is there, and the run goes on from it.
    monkeypatch.undo()
    whole = distill_few(
        few_images, tmp_path / "whole", method="kd", overrides={"checkpoint.epochs": 1}
    )
    done = distill_few(
        few_images,
        tmp_path / "run",
        method="kd",
        resume=True,
        overrides={"checkpoint.epochs": 1} | SKIP,
    )
    assert equal_weights(student_weights(whole), student_weights(done))


def test_a_gradient_that_is_not_finite_is_told(few_images, tmp_path, monkeypatch):
    spoil(monkeypatch, {2}, bad_gradient)
    with pytest.raises(TrainingError, match=r"gradient is not finite at step 2 of epoch 1; the lo"):
        distill_few(few_images, tmp_path / "run", method="kd")


def test_numbers_on_a_device_are_looked_at_before_a_save(few_images, tmp_path, monkeypatch):
    """As on a GPU, where no step waits: told later, but with its own step, and never saved."""
    spoil(monkeypatch, {4}, nan_in("ce"))
    start_epoch = Trainer.start_epoch

    def as_on_a_gpu(self, number):
        self._check_every_step = False
        start_epoch(self, number)

    monkeypatch.setattr(Trainer, "start_epoch", as_on_a_gpu)
    with pytest.raises(TrainingError, match=r"at step 4 of epoch 1; it comes from: ce") as caught:
        distill_few(few_images, tmp_path / "run", method="kd", overrides={"checkpoint.epochs": 1})
    # By then the weights are spoilt too, which says nothing of the cause.
    assert "Likely cause: not known, since it was seen some steps later" in str(caught.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_images_are_blamed_where_they_are_the_cause(few_images, tmp_path, monkeypatch):
    forward = TrainStep.forward

    def spoiled(self, batch):
        batch.images[1] = math.nan
        return forward(self, batch)

    monkeypatch.setattr(TrainStep, "forward", spoiled)
    with pytest.raises(TrainingError, match=r"the images of samples \[\d+\] hold NaN"):
        distill_few(few_images, tmp_path / "run", method="kd")


@pytest.mark.parametrize("change", [nan_in("ce"), bad_gradient])
@pytest.mark.parametrize("method", ["cktf+kd", "queue"])
def test_a_skipped_step_changes_nothing_but_the_schedule(
    few_images, tmp_path, monkeypatch, change, method
):
    options = {"negatives": 32}
    if method == "queue":
        options |= {"memory": "queue", "queue_size": 96}
    states = []
    step = Trainer.train_step

    def watched(self):
        before = {k: v.clone() for k, v in self.objective.state_dict().items()}
        before |= {f"student.{k}": v.clone() for k, v in self.student.state_dict().items()}
        skipped = self.metrics.skipped
        step(self)
        if self.metrics.skipped > skipped:
            after = self.objective.state_dict() | {
                f"student.{k}": v for k, v in self.student.state_dict().items()
            }
            states.append([k for k in before if not torch.equal(before[k], after[k])])

    monkeypatch.setattr(Trainer, "train_step", watched)
    # The first step too: it would set the normalizers.
    spoil(monkeypatch, {1, 7}, change)
    run = distill_few(
        few_images, tmp_path / "run", method="cktf+kd", options={"cktf": options}, overrides=SKIP
    )
    assert states == [[], []]
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
    assert {id(b) for b in buffers} == {id(network.steps), *map(id, norm.buffers())}


def test_skipping_changes_nothing_where_all_is_finite(few_images, tmp_path):
    a = distill_few(few_images, tmp_path / "a", options={"cktf": {"negatives": 32}})
    b = distill_few(few_images, tmp_path / "b", options={"cktf": {"negatives": 32}}, overrides=SKIP)
    assert equal_weights(student_weights(a), student_weights(b))


def test_skipping_ends_where_nothing_is_finite(few_images, tmp_path, monkeypatch):
    spoil(monkeypatch, set(range(3, 1000)), nan_in("ce"))
    monkeypatch.setattr("cktf.engine.epoch_metrics._MAX_SKIPPED_IN_A_ROW", 6)
    with pytest.raises(TrainingError, match="6 steps in a row were not finite"):
        distill_few(few_images, tmp_path / "run", method="kd", overrides=SKIP)
    monkeypatch.setattr("cktf.engine.epoch_metrics._MAX_SKIPPED_IN_A_ROW", 600)
    monkeypatch.undo()
    spoil(monkeypatch, set(range(1, 1000)), nan_in("ce"))
    with pytest.raises(TrainingError, match="all were skipped"):
        distill_few(few_images, tmp_path / "other", method="kd", overrides=SKIP)


def test_the_gradient_is_clipped_as_a_whole():
    parameters = [torch.zeros(3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    gradients = [torch.tensor([3.0, 0, 0]), torch.tensor([0, 0, 4.0, 0])]
    for clip, scale in ((None, 1), (10, 1), (1, 1 / 5)):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        assert float(gradient_norm(parameters, clip)) == 5
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient * scale)


def test_clipping_is_part_of_a_run(few_images, tmp_path):
    free = distill_few(few_images, tmp_path / "free", method="kd")
    clipped = distill_few(
        few_images, tmp_path / "clipped", method="kd", overrides={"optimizer.clip": 0.01}
    )
    loose = distill_few(
        few_images, tmp_path / "loose", method="kd", overrides={"optimizer.clip": 1e9}
    )
    assert not equal_weights(student_weights(free), student_weights(clipped))
    assert equal_weights(student_weights(free), student_weights(loose))
    assert read_untimed_metrics(free.folder)[0]["gradient_norm"] > 0.1


def test_no_memory_is_told_with_what_to_change(few_images, tmp_path, monkeypatch):
    def full(self, *args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(CRD, "loss", full)
    with pytest.raises(TrainingError) as caught:
        distill_few(few_images, tmp_path / "run", options={"cktf": {"negatives": 32}})
    text = str(caught.value)
    for part in ("data.batch_size=20", "options.METHOD: memory=queue and", "2.00 GiB"):
        assert part in text
    assert "estimator=shared" not in text


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"memory": "queue", "queue_size": 9999}, "queue_size below 9999, or storage=bfloat16, "),
        ({"negatives": 10}, "memory=queue and queue_size below 10000, or storage=bfloat16, "),
        ({"negatives": 9999, "embedding_dim": 1}, "negatives below 9999."),
        ({"memory": "batch"}, None),
    ],
)
def test_no_memory_is_told_with_what_is_not_set(options, advice):
    crd = CRD(4, 5, 10**4, **options)
    told = out_of_memory(MemoryError(), crd.footprint(40), 40, torch.device("cpu"))
    assert told
    assert str(told).count("batch_size") == 1
    contrast = str(told).partition("of options.METHOD: ")[2]
    assert contrast.startswith(advice) if advice else not contrast


def test_memory_that_the_machine_does_not_have(few_images, tmp_path, monkeypatch):
    """The allocator's own error, on the CPU."""
    monkeypatch.setattr(TrainStep, "forward", lambda *args: torch.empty(1 << 60, dtype=torch.uint8))
    with pytest.raises(TrainingError, match="Memory of cpu is not enough for batches of 40"):
        distill_few(few_images, tmp_path / "run", method="kd")
    assert not is_out_of_memory(ValueError("x"))


def test_no_memory_for_the_teacher_on_the_test_images(few_images, tmp_path, monkeypatch):
    def full(self, *args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "evaluate", full)
    with pytest.raises(TrainingError, match=r"not enough for batches of 500 .*2\.00 GiB") as caught:
        distill_few(few_images, tmp_path / "run", method="kd")
    # How many images it sees at a time is not the recipe's to say.
    assert "batch_size" not in str(caught.value)


def test_metrics_continue_from_their_saved_state():
    metrics, loss = EpochMetrics(), Loss(torch.tensor(2.0), {"ce": torch.tensor(1.0)})
    metrics.add(metrics.stack(loss, torch.tensor(3.0)), lr=0.1)
    again = EpochMetrics.from_state_dict(metrics.state_dict(), torch.device("cpu"))
    again.add(again.stack(loss, torch.tensor(5.0)), lr=0.2)
    assert again.means() == {
        "loss": 2, "terms": {"ce": 1}, "gradient_norm": 4, "lr": 0.2, "skipped": 0
    }  # fmt: skip


def test_a_network_with_frozen_parts(few_images, tmp_path):
    network = SmallNet()
    network.a.requires_grad_(False)
    run = cktf.teach(
        network, train=few_images[0], epochs=1, out=tmp_path / "run", show=False,
        overrides=SKIP | {"optimizer.clip": 1.0},
    )  # fmt: skip
    assert run.summary["skipped_steps"] == 0
