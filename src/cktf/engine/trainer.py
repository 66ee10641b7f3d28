"""The one training loop.

It knows no method by name: the loss is that of an `Objective` over `Features`.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.data import Loader
from cktf.engine.accuracy import Accuracy, evaluate
from cktf.engine.callbacks import Callback, CheckFirstStep, StepTimer, StopOnSignal
from cktf.engine.checkpointing import (
    CHECKPOINT_VERSION,
    PeriodicCheckpoints,
    TrainingPosition,
    upgrade_checkpoint,
)
from cktf.engine.config import TrainingConfig
from cktf.engine.epoch_metrics import CHECK_EVERY, EpochMetrics, gradient_norm, nonfinite_error
from cktf.engine.filling import fill_memories
from cktf.engine.graph import GraphedStep
from cktf.engine.memory import explain_out_of_memory, peak_memory_mb, reset_peak_memory
from cktf.engine.progress import ProgressBar, announce
from cktf.engine.randomness import preserve_rng, random_state, restore_random_state
from cktf.engine.result import TrainResult
from cktf.engine.run_folder import RunFolder
from cktf.engine.runtime import Runtime
from cktf.engine.step import (
    MAIN,
    TrainPhase,
    build_optimizer,
    build_scheduler,
    load_optimizer,
    save_buffers,
)
from cktf.errors import CheckpointError
from cktf.signals import catch_stop_signals
from cktf.taps import Features, freeze


class Trainer:
    """Trains one network, phase after phase.

    Args:
        phases: in order; the last is the main phase, and its objective holds all that the others
            train. Their teachers are frozen and put in eval mode.
        train: training batches.
        test: batches to evaluate on after every epoch of the main phase; None for no evaluation.
        num_classes: number of logits of the student.
        config: the recipe.
        run: folder that everything is written to.
        runtime: device, precision and seed.
        title: name of the run, shown beside the progress bar.
        show: whether progress is shown.
        identity: hash of the recipe; a checkpoint of another recipe is refused.
        earlier_identities: hashes of the same recipe with other numbers of epochs. From a
            checkpoint of these, the learning rate follows the schedule of `config`.
        validation: batches held out of the training set; the student ends with the weights of the
            epoch that is best on them.
        callbacks: called around steps and epochs, after timing and progress, before checkpoints.

    Attributes:
        position: number of epochs and steps that are done.
        phase, epoch: the current phase, and its current epoch, counted from 1 in each phase.
        metrics: losses and times of the current epoch.
        should_stop: set by a callback to end training after the epoch, in the main phase.
    """

    def __init__(
        self,
        phases: Sequence[TrainPhase],
        train: Loader,
        test: Loader | None,
        num_classes: int,
        config: TrainingConfig,
        run: RunFolder,
        runtime: Runtime,
        title: str = "",
        show: bool = True,
        identity: str = "",
        earlier_identities: Sequence[str] = (),
        validation: Loader | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        student = phases[-1].step.student
        assert student is not None
        self.student, self.phases, self.objective = student, phases, phases[-1].step.objective
        self.train, self.test, self.validation = train, test, validation
        self.num_classes, self.config, self.run, self.runtime = num_classes, config, run, runtime
        self.title, self.show, self.identity = title, show, identity
        self._earlier_identities = earlier_identities
        self.device = runtime.device
        runtime.to_device(student)
        self.objective.to(self.device)
        for tap in (phase.step.teacher_tap for phase in phases):
            if tap is not None:
                runtime.to_device(tap.model)
                freeze(tap.model)
        reset_peak_memory(self.device)
        self.num_epochs = sum(phase.epochs for phase in phases)
        self.position, self.metrics = TrainingPosition(), EpochMetrics()
        # Of the epoch with the highest accuracy on held-out images, the earliest of equals.
        self.best: dict[str, Any] = {"epoch": 0, "top1": -1.0, "weights": {}}
        self.phase: TrainPhase | None = None
        self.epoch, self.should_stop = 0, False
        self._batches: Iterator[Batch] = iter(())
        self._skips = config.runtime.on_nonfinite == "skip"
        # Reading numbers back costs no wait on the CPU; skipping needs them before the update.
        self._check_every_step = self.device.type == "cpu" or self._skips
        self._rng_before_evaluation: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None
        self.checkpoints = PeriodicCheckpoints(config.checkpoint, title, show)
        progress = [ProgressBar(title)] if show else []
        stop = StopOnSignal(self.checkpoints)
        self.callbacks = [
            StepTimer(), CheckFirstStep(), *progress, *callbacks, stop, self.checkpoints
        ]  # fmt: skip

    def fit(self) -> TrainResult:
        """Train to the end, from the newest checkpoint if there is one.

        Raises:
            Interrupted: SIGTERM or Ctrl-C; the run has saved itself.
            TrainingError: numbers that are not finite, or too little memory.
        """
        with self.training():
            for number in range(self.position.epochs + 1, self.num_epochs + 1):
                self.start_epoch(number)
                while self.position.step < len(self.train):
                    self.train_step()
                self.end_epoch()
                if self.is_finished:
                    break
        return self.result()

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or a callback stopped the main phase."""
        stopped = self.should_stop and self.phase is self.phases[-1]
        return self.position.epochs == self.num_epochs or (stopped and self.position.step == 0)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Load the newest checkpoint, listen to signals, and call the callbacks at both ends."""
        self.runtime.reset_seed()
        self._load_checkpoint()
        footprint = self.objective.footprint(self.train.batch_size)
        if footprint.step:
            self.run.log(f"memory for contrast: {footprint}")
            announce(f"{self.title}: memory for contrast: {footprint}", self.show)
        algorithms = self.runtime.gpu_algorithms()
        with catch_stop_signals(), algorithms, self.explain_out_of_memory():
            try:
                self._call("on_train_start")
                yield
            finally:
                # Ends the workers of a loader, also where an exception keeps this object alive.
                self._batches = iter(())
                self._call("on_train_end")

    def explain_out_of_memory(self) -> AbstractContextManager[None]:
        """Turn a failed allocation inside into advice for this run."""
        footprint = self.objective.footprint(self.train.batch_size)
        return explain_out_of_memory(self.train.batch_size, self.device, footprint, training=True)

    def start_epoch(self, number: int) -> None:
        """Begin an epoch or continue inside it; `number` counts from 1 over all phases."""
        first = 1
        for phase in self.phases:
            if number < first + phase.epochs:
                break
            first += phase.epochs
        self.epoch = number - first + 1
        if self.phase is not phase:
            self._start_phase(phase, resumed=number > first or self.position.step > 0)
        phase.step.train()
        self._graphed_step.begin_epoch()
        if not self.metrics.steps:
            phase.step.objective.begin_epoch(self.epoch)
        self._batches = self.train.epoch(number, start=self.position.step, device=self.device)
        self._call("on_epoch_start")

    def train_step(self) -> None:
        """Load a batch and take a step on it: loss, gradient, update, metrics."""
        assert self.phase is not None
        step, number = self.phase.step, self.position.step + 1
        self._call("on_step_start")
        batch = next(self._batches)
        restore_buffers = save_buffers(step) if self._skips else None

        lr = self.optimizer.param_groups[0]["lr"]
        if self._check_every_step:
            numbers = self._compute_gradient(batch)
            self.metrics.unchecked.append((number, lr, numbers))
            if self._all_finite(batch):
                self._update()
                self.metrics.add(numbers, lr)
            elif restore_buffers is not None:
                restore_buffers()
            self.optimizer.zero_grad(set_to_none=True)
        else:
            numbers = self._graphed_step(batch)
            self.metrics.unchecked.append((number, lr, numbers))
            self.metrics.add(numbers, lr)
            if len(self.metrics.unchecked) >= CHECK_EVERY or number == len(self.train):
                self.raise_if_nonfinite()
        # The schedule counts skipped and replayed steps too; PyTorch would warn of them.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.scheduler.step()

        self.position = replace(self.position, step=number)
        self._call("on_step_end")

    def _compute_gradient(self, batch: Batch, teacher: Features | None = None) -> Tensor:
        """Leave a batch's gradients in the parameters, and return the step's numbers."""
        assert self.phase is not None
        loss = self.phase.step(batch, teacher)
        torch.autograd.backward(self.phase.weight * loss.total)
        norm = gradient_norm(self.parameters, self.config.optimizer.clip)
        return self.metrics.stack(loss, norm)

    def _update(self) -> None:
        """Change the weights by their gradients, and store the batch in the memories."""
        assert self.phase is not None
        self.optimizer.step()
        self.phase.step.objective.after_step()

    def _take_step(self, batch: Batch, teacher: Features | None = None) -> Tensor:
        """Take a step without a look at its numbers, which are returned."""
        numbers = self._compute_gradient(batch, teacher)
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def end_epoch(self) -> None:
        """Evaluate, record and save an epoch."""
        assert self.phase is not None
        # Ends the workers of the epoch's loader.
        self._batches = iter(())
        images, seconds = self.position.step * self.train.batch_size, self.metrics.seconds
        row: dict[str, Any] = {
            "phase": self.phase.name,
            "epoch": self.epoch,
            **self.metrics.means(),
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        if self.validation is not None and self.phase.name == MAIN:
            row["validation_top1"] = self.evaluate(self.student, self.validation).top1
            if row["validation_top1"] > self.best["top1"]:
                weights = copy.deepcopy(dict(self.student.state_dict()))
                top1 = row["validation_top1"]
                self.best = {"epoch": self.epoch, "top1": top1, "weights": weights}
        if self.test is not None and self.phase.name == MAIN:
            accuracy = self.evaluate(self.student, self.test)
            row |= {"test_top1": accuracy.top1, "test_top5": accuracy.top5}
        self.run.record(row)
        self.run.log(f"{self.phase.name}: epoch {self.epoch}/{self.phase.epochs}: {row}")
        self.position = TrainingPosition(self.position.epochs + 1)
        self.metrics = EpochMetrics(
            self.metrics.names, skipped_in_a_row=self.metrics.skipped_in_a_row
        )
        self._call("on_epoch_end", row)

    def evaluate(self, network: nn.Module, loader: Loader) -> Accuracy:
        """Accuracy of a network on labeled batches, in the precision of training, in eval mode."""
        # Loading batches must not run under autocast.
        forward = self.runtime.autocast()(network.eval())
        # Evaluation must not advance the training RNG, also where a signal ends it.
        with preserve_rng(self.device) as self._rng_before_evaluation:
            # The teacher is evaluated before training starts.
            after_batch = partial(self._call, "on_evaluate_step") if self.phase else None
            return evaluate(forward, loader, self.num_classes, self.device, after_batch)

    def result(self) -> TrainResult:
        """Collect the results of a finished run, and load the best weights into the student."""
        rows = self.run.rows()
        main = [row for row in rows if row["phase"] == MAIN]
        last = None
        if self.test is not None:
            last = Accuracy(main[-1]["test_top1"], main[-1]["test_top5"], self.test.samples)
        if self.validation is not None:
            self.student.load_state_dict(self.best["weights"])
        return TrainResult(
            last=last,
            best_top1=max(row["test_top1"] for row in main) if self.test else None,
            best_row=main[self.best["epoch"] - 1] if self.validation is not None else None,
            seconds=sum(row["seconds"] for row in rows),
            images_per_second=sum(r["images"] for r in main) / sum(r["seconds"] for r in main),
            peak_memory_mb=peak_memory_mb(self.device),
            skipped=sum(row["skipped"] for row in rows),
        )

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    def _start_phase(self, phase: TrainPhase, *, resumed: bool) -> None:
        """Build the optimizer of a phase; load it from the checkpoint, or fill the memories."""
        self.phase, config = phase, self.config.optimizer
        trained = [] if phase.step.student is None else list(self.student.parameters())
        self.parameters: list[Tensor] = [*trained, *phase.step.objective.parameters()]
        assert config.lr is not None
        lr = config.lr if phase.lr is None else phase.lr
        self.optimizer = build_optimizer(self.parameters, config, lr, self.device)
        # A user's networks may come with gradients.
        self.optimizer.zero_grad(set_to_none=True)
        schedule = self.config.schedule if phase.lr is None else None
        steps = phase.epochs * len(self.train)
        self.scheduler = build_scheduler(self.optimizer, schedule, config.lr, steps)
        if resumed and self._checkpoint is not None:
            with self._explain_foreign_checkpoint():
                is_earlier = self._checkpoint["identity"] in self._earlier_identities
                load_optimizer(self.optimizer, self.scheduler, self._checkpoint, is_earlier)
        elif phase.step.objective.fill_samples:
            fill_memories(phase.step, self.train, self.runtime, self.run)
        # It holds a copy of all weights, and later phases do not need it.
        self._checkpoint = None
        self._graphed_step = GraphedStep(
            self._take_step, phase.step, self.optimizer, self.config, self.device, self.run.log
        )
        self._call("on_phase_start")

    def _all_finite(self, batch: Batch) -> bool:
        """Check the unchecked steps; count a step as skipped, or raise, as the config says."""
        if not self._skips:
            self.raise_if_nonfinite(batch)
        elif (bad := self.metrics.find_nonfinite_step()) is not None:
            self.run.log(f"skipped step {bad.step} of epoch {self.epoch}: {bad.names} not finite")
            self.metrics.skip(self.epoch, bad.step)
            return False
        return True

    def raise_if_nonfinite(self, batch: Batch | None = None) -> None:
        """Check the unchecked steps, the last of which was on `batch`; TrainingError if not."""
        if (bad := self.metrics.find_nonfinite_step()) is not None:
            # On a GPU, numbers are checked some steps later.
            current = batch if bad.step == self.position.step + 1 else None
            raise nonfinite_error(bad, self.epoch, current, self.student, self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next step, in the format of `CHECKPOINT_VERSION`."""
        return {
            "version": CHECKPOINT_VERSION,
            "identity": self.identity,
            "position": [self.position.epochs, self.position.step],
            "metrics": self.metrics.state_dict(),
            "rows": json.dumps(self.run.rows()),
            "student": self.student.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "best": self.best,
            "random": self._rng_before_evaluation or random_state(self.device),
        }

    def _load_checkpoint(self) -> None:
        """Load the newest checkpoint, except the optimizer, which its phase loads."""
        state = self.run.checkpoints.newest()
        if state is None:
            self.run.restore_rows([])
            return
        with self._explain_foreign_checkpoint():
            state = upgrade_checkpoint(state)
            # Version 4 hashed other fields; its run folder's recipe was compared before.
            if state["identity"] not in (self.identity, *self._earlier_identities, None):
                raise ValueError("it was saved under another recipe")
            self.student.load_state_dict(state["student"])
            # Its tensors are mapped: until they are freed, the file takes room on the disk.
            self.objective.load_state_dict(state.pop("objective"))
            self.position = TrainingPosition(*state["position"])
            self.metrics = EpochMetrics.from_state_dict(state["metrics"], self.device)
            self.best = state["best"]
            restore_random_state(state["random"], self.device)
            rows = json.loads(state["rows"])
        self.run.restore_rows(rows)
        self.checkpoints.saved = self.position
        self._checkpoint = None if self.is_finished else state
        self.run.log(f"continued {self.position}")

    @contextmanager
    def _explain_foreign_checkpoint(self) -> Iterator[None]:
        """Raise CheckpointError if loading inside the block fails: the checkpoint does not fit."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint in {self.run.path} belongs to another run: {error}. Continue with "
                "the recipe in that folder, or choose another --out."
            ) from error
