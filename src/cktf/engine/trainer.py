"""The one training loop: teacher, student, objective, step.

It knows no method by name: whatever is trained is an `Objective` over `Features`.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from cktf.batch import Batch
from cktf.data import Loader
from cktf.engine.best_checkpoint import BestCheckpoint
from cktf.engine.checkpoint_schedule import Saver, TrainingPosition
from cktf.engine.devices import device_of, to_device
from cktf.engine.epoch_metrics import (
    BufferCopies,
    EpochMetrics,
    enough_memory,
    gradient_norm,
    not_finite,
)
from cktf.engine.evaluate import Accuracy, evaluate
from cktf.engine.phase import MAIN, Stage, schedule, statistics_kept
from cktf.engine.progress import TrainingProgress, announce
from cktf.engine.randomness import preserve_rng, random_state, restore_random_state
from cktf.engine.run_folder import RunFolder
from cktf.engine.settings import Training, autocast, in_precision, peak_memory_mb, reset_peak_memory
from cktf.errors import CheckpointError, Interrupted
from cktf.objectives import Loss
from cktf.signals import catch_stop_signals, stop_signal
from cktf.taps import Features

_CHECKPOINT_VERSION = 4


@dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Attributes:
        last: accuracy after the last epoch; None without test data.
        best_top1: the best epoch's, chosen on the test set, in per cent.
        chosen: the row of the epoch that the student has the weights of, chosen on held-out images;
            None where there were none, and it has those of the last.
        seconds: spent on training in all stages; not evaluating, saving and filling memories.
        images_per_second: of the last stage.
        peak_memory_mb: largest memory held in this run: of a GPU, or else of the process.
        skipped: steps whose numbers were not finite.
    """

    last: Accuracy | None
    best_top1: float | None
    chosen: dict[str, Any] | None
    seconds: float
    images_per_second: float
    peak_memory_mb: float
    skipped: int

    @property
    def kept_top1(self) -> float | None:
        """Accuracy on the test set of the weights that are kept, in per cent."""
        if self.chosen is not None:
            return self.chosen.get("test_top1")
        return None if self.last is None else self.last.top1


class Trainer:
    """Trains one network, stage after stage.

    Args:
        student: the network that is trained.
        stages: in order; the last is the one that `Training` describes, and its objective holds
            whatever the others train. Their teachers are frozen and put in eval mode.
        train: training batches.
        test: evaluated after every epoch of the last stage; None for no evaluation.
        num_classes: logits of the student.
        training: how.
        run: where everything is written.
        title: shown beside the progress bar.
        show: whether progress is shown.
        identity: of the recipe: a checkpoint of another is not continued.
        validation: images held out of the training set: the student ends with the weights of the
            epoch that is best on them.
    """

    def __init__(
        self,
        student: nn.Module,
        stages: Sequence[Stage],
        train: Loader,
        test: Loader | None,
        num_classes: int,
        training: Training,
        run: RunFolder,
        title: str = "",
        show: bool = True,
        identity: str = "",
        validation: Loader | None = None,
    ) -> None:
        self.device = device_of(training)
        set_seed(training.seed)
        self.student, self.stages, self.objective = student, stages, stages[-1].objective
        self.train, self.test, self.num_classes = train, test, num_classes
        self.validation, self.choice = validation, BestCheckpoint()
        self.training, self.run, self.title, self.show = training, run, title, show
        to_device(student, training, self.device)
        self.objective.to(self.device)
        for stage in stages:
            if stage.teacher is not None:
                to_device(stage.teacher.model, training, self.device)
                stage.teacher.model.eval().requires_grad_(False)
        self.place, self.tally = TrainingPosition(), EpochMetrics()
        reset_peak_memory(self.device)
        self.saver, self.identity = Saver(run, training, title, show), identity
        self._epoch_now, self._random = 0, dict[str, Any]()
        # Nothing waits for the CPU; and what is to be skipped has to be known before the update.
        self._looks_at_once = self.device.type == "cpu" or training.on_nonfinite == "skip"

    def steps(self) -> Iterator[None]:
        """Train to the end, from the newest checkpoint if the run folder has one.

        It stops after every step, so that several runs can take turns.

        Raises:
            Interrupted: a signal asked for it; the run has saved itself.
            TrainingError: numbers that are not finite, or too little memory.
        """
        state = self._resume()
        footprint = self.objective.footprint(self.train.batch_size)
        if footprint.step:
            self.run.log(f"memory for contrast: {footprint}")
            announce(f"{self.title}: memory for contrast: {footprint}", self.show)
        before = 0
        enough = enough_memory(self.train.batch_size, self.device, footprint, training=True)
        with catch_stop_signals(), enough:
            for stage in self.stages:
                if self.place.passes < before + stage.epochs:
                    own = self.place.passes - before
                    self._begin(stage, state if own or self.place.step else None)
                    # It is of no other stage, and holds a copy of all that is trained.
                    state = None
                    yield from self._train(stage, before, own)
                before += stage.epochs

    def result(self) -> TrainResult:
        """What came of a run that is at its end; the student has the weights that are kept."""
        rows = self.run.rows()
        last = [row for row in rows if row["stage"] == MAIN]
        if self.validation is not None:
            self.choice.put_into(self.student)
        rate = sum(row["images"] for row in last) / sum(row["seconds"] for row in last)
        return TrainResult(
            last=_accuracy(last[-1], self.test),
            best_top1=max(row["test_top1"] for row in last) if self.test else None,
            chosen=last[self.choice.epoch - 1] if self.validation is not None else None,
            seconds=sum(row["seconds"] for row in rows),
            images_per_second=rate,
            peak_memory_mb=peak_memory_mb(self.device),
            skipped=sum(row["skipped"] for row in rows),
        )

    def _begin(self, stage: Stage, state: dict[str, Any] | None) -> None:
        """A new optimizer for a stage, or the one that a checkpoint left inside it."""
        trained = [] if stage.student is None else list(self.student.parameters())
        self._parameters = [*trained, *stage.objective.parameters()]
        self.optimizer = torch.optim.SGD(
            self._parameters,
            lr=self.training.lr if stage.lr is None else stage.lr,
            momentum=self.training.momentum,
            weight_decay=self.training.weight_decay,
            nesterov=self.training.nesterov,
        )
        # Gradients that the networks came with are of no step of this run.
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler: LRScheduler
        if stage.lr is None:
            self.scheduler = schedule(self.optimizer, self.training, len(self.train))
        else:
            self.scheduler = ConstantLR(self.optimizer, factor=1.0)
        if state is not None:
            with self._of_this_run():
                self.optimizer.load_state_dict(state["optimizer"])
                self.scheduler.load_state_dict(state["scheduler"])
        elif stage.objective.filling:
            self._fill(stage)

    def _train(self, stage: Stage, before: int, done: int) -> Iterator[None]:
        """The epochs of a stage that are not done; epochs are counted on from stage to stage."""
        title = self.title if stage.name == MAIN else f"{self.title}: first {stage.name}"
        with TrainingProgress(title, stage.epochs, len(self.train), done, self.show) as progress:
            for epoch in range(done + 1, stage.epochs + 1):
                row = yield from self._epoch(stage, epoch, before + epoch, progress)
                self.run.record(row)
                self.run.log(f"{stage.name}: epoch {epoch}/{stage.epochs}: {row}")
                progress.epoch(epoch, row["loss"], row.get("test_top1"), row["images_per_second"])
                self.place = TrainingPosition(before + epoch)
                self.tally = EpochMetrics(in_a_row=self.tally.in_a_row)
                if epoch == stage.epochs or self.saver.due_after(before + epoch):
                    self._save()

    def _epoch(
        self, stage: Stage, epoch: int, passes: int, progress: TrainingProgress
    ) -> Generator[None, None, dict[str, Any]]:
        stage.set_modes()
        stage.objective.train()
        if not self.tally.counted:
            stage.objective.begin_epoch(epoch)
        self._epoch_now = epoch
        progress.step(self.place.step)
        began = time.perf_counter()
        for batch in self.train.epoch(passes, start=self.place.step):
            self._step(stage, batch.to(self.device))
            progress.step()
            self.tally.seconds += time.perf_counter() - began
            self._between_steps()
            yield
            began = time.perf_counter()
        self._check_recent()
        # On a GPU that waited for steps which were only begun.
        self.tally.seconds += time.perf_counter() - began
        images, seconds = self.place.step * self.train.batch_size, self.tally.seconds
        row: dict[str, Any] = {
            "stage": stage.name,
            "epoch": epoch,
            **self.tally.row(),
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        if self.validation is not None and stage.name == MAIN:
            held_out = self.evaluate(self.student, self.validation, self._heed).top1
            self.choice.consider(epoch, held_out, self.student)
            row |= {"validation_top1": held_out}
        if self.test is not None and stage.name == MAIN:
            accuracy = self.evaluate(self.student, self.test, self._heed)
            row |= {"test_top1": accuracy.top1, "test_top5": accuracy.top5}
        return row

    def _loss(self, stage: Stage, batch: Batch) -> Loss:
        """The objective's loss of a batch; adapters compute in the networks' precision."""
        with self._autocast():
            return stage.objective(*self._features(stage, batch), batch)  # type: ignore[no-any-return]

    def _features(self, stage: Stage, batch: Batch) -> tuple[Features, Features | None]:
        """What both networks give for a batch; the teacher without gradient."""
        teacher = None
        if stage.teacher is not None:
            with torch.no_grad():
                teacher = stage.teacher.extract(batch)
        student = teacher if stage.student is None else stage.student(batch.images)
        assert student is not None
        return student, teacher

    @torch.no_grad()
    def _fill(self, stage: Stage) -> None:
        """Fill the objective's memories from a pass over the training set.

        The student is in training mode, as it will be when these rows are its negatives.
        """
        stage.set_modes()
        began, samples = time.perf_counter(), 0
        with statistics_kept(self.student):
            for batch in self.train.epoch(0, cover=True):
                batch = batch.to(self.device)
                with self._autocast():
                    features = self._features(stage, batch)
                stage.objective.fill(*features, batch)
                samples += len(batch)
                if (asked := stop_signal()) is not None:
                    raise Interrupted(f"Stopped by {asked} before training.", self.run.path)
                if stage.objective.full_after(samples):
                    break
        seconds = time.perf_counter() - began
        self.run.log(f"memories filled from {samples} training images in {seconds:.1f} s")

    def evaluate(
        self, network: nn.Module, loader: Loader, between: Callable[[], None] | None = None
    ) -> Accuracy:
        """Accuracy of a network on a data set, in the precision of training.

        Args:
            network: is put in eval mode.
            loader: labeled batches.
            between: called after every batch.
        """
        forward = in_precision(network.eval(), self.training.precision, self.device)
        # What images draw here is none of training's, wherever a signal ends it.
        with preserve_rng(self.device) as self._random:
            return evaluate(forward, loader, self.num_classes, self.device, between)

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self.training.precision, self.device)

    def _step(self, stage: Stage, batch: Batch) -> None:
        """One batch: its loss, its gradient, and unless these are not finite the update."""
        skips = self.training.on_nonfinite == "skip"
        copies = BufferCopies(self.student, stage.objective) if skips else None
        loss = self._loss(stage, batch)
        torch.autograd.backward(stage.weight * loss.total)
        norm = gradient_norm(self._parameters, self.training.clip)
        numbers, lr = self.tally.numbers(loss, norm), self.optimizer.param_groups[0]["lr"]
        look = self.tally.note(self.place.step + 1, lr, numbers) or self._looks_at_once
        if look and (bad := self.tally.first_bad()) is not None:
            if copies is None:
                # On a GPU, numbers are looked at some steps later.
                known = batch if bad[0] == self.place.step + 1 else None
                raise not_finite(bad, self._epoch_now, known, self.student, self._parameters)
            copies.restore()
            self.run.log(f"skipped step {bad[0]} of epoch {self._epoch_now}: {bad[2]} not finite")
            self.tally.skip(self._epoch_now, bad[0])
            # The schedule goes by steps, whether they are taken or not; PyTorch warns of it.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
        else:
            self.optimizer.step()
            stage.objective.after_step()
            self.tally.add(numbers, lr)
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.place = replace(self.place, step=self.place.step + 1)

    def _between_steps(self) -> None:
        """Save if it is time to, and stop if that was asked for."""
        self._heed()
        if self.saver.overdue:
            self._save()

    def _heed(self) -> None:
        """Save and stop if a signal asked for it."""
        asked = stop_signal()
        if asked is not None:
            kept = "saved" if self._save() else "it could not be saved; the checkpoint before stays"
            at = f"step {self.place.step} of epoch {self._epoch_now}"
            self.run.log(f"stopped by {asked} after {at}: {kept}")
            raise Interrupted(f"Stopped by {asked} after {at}; {kept}.", self.run.path)

    def _check_recent(self) -> None:
        """Raise if a step that was not looked at yet was not finite."""
        if (bad := self.tally.first_bad()) is not None:
            raise not_finite(bad, self._epoch_now, None, self.student, self._parameters)

    def _save(self) -> bool:
        self._check_recent()
        return self.saver.save(self.place, self._state)

    def _state(self) -> dict[str, Any]:
        """All that decides the next step."""
        return {
            "version": _CHECKPOINT_VERSION,
            "identity": self.identity,
            "place": [self.place.passes, self.place.step],
            "tally": self.tally.state(),
            "rows": json.dumps(self.run.rows()),
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "choice": self.choice.state(),
            "random": self._random or random_state(self.device),
        }

    def _resume(self) -> dict[str, Any] | None:
        """Take up the newest checkpoint, but for the optimizer; None for a fresh run."""
        state = self.run.saved.newest()
        if state is None:
            self.run.begin_rows([])
            return None
        with self._of_this_run():
            if state["version"] != _CHECKPOINT_VERSION:
                raise ValueError(f"it is of version {state['version']}, not {_CHECKPOINT_VERSION}")
            if state["identity"] != self.identity:
                raise ValueError("it was saved under another recipe")
            self.student.load_state_dict(state["student"])
            # Let go at once: while it is there, its file takes room on the disk.
            self.objective.load_state_dict(state.pop("objective"))
            self.place = TrainingPosition(*state["place"])
            self.tally = EpochMetrics.restored(state["tally"], self.device)
            self.choice.restore(state["choice"])
            restore_random_state(state["random"], self.device)
            rows = json.loads(state["rows"])
        self.run.begin_rows(rows)
        self.saver.saved = self.place
        self.run.log(f"continued {self.place}")
        return state

    @contextmanager
    def _of_this_run(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint in {self.run.path} belongs to another run: {error}. Continue with "
                "the recipe in that folder, or choose another --out."
            ) from error


def _accuracy(row: dict[str, Any], test: Loader | None) -> Accuracy | None:
    return None if test is None else Accuracy(row["test_top1"], row["test_top5"], test.samples)
