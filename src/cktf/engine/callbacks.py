"""Callbacks around the steps of training: their base class, timing, and stopping on a signal."""

import time
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cktf.errors import Interrupted, TrainingError
from cktf.signals import stop_signal

if TYPE_CHECKING:
    from cktf.engine.checkpointing import PeriodicCheckpoints
    from cktf.engine.trainer import Trainer


class Callback:
    """Base of callbacks: override the methods that you need.

    The trainer holds the state of the run: `position` (epochs and steps done), `phase`, `epoch`,
    `student`, `metrics`, `optimizer`, `config`, `run` (its folder). Callbacks run in the order in
    which they were passed, before a checkpoint is saved. An exception from a callback ends the run.
    A callback that draws random numbers changes those of training. docs/loop.md has an example.

    >>> class StopEarly(Callback):
    ...     def on_epoch_end(self, trainer, row):
    ...         trainer.should_stop = row.get("test_top1", 0) > 90
    """

    def on_train_start(self, trainer: "Trainer") -> None:
        """Called before the first step, after a checkpoint was loaded."""

    def on_phase_start(self, trainer: "Trainer") -> None:
        """Called before the first step of a phase, which is `trainer.phase`."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """Called before the first step of an epoch, or where a run continues inside one."""

    def on_step_start(self, trainer: "Trainer") -> None:
        """Called before a batch is loaded."""

    def on_step_end(self, trainer: "Trainer") -> None:
        """Called after the optimizer's step, when gradients are cleared and the step is counted."""

    def on_evaluate_step(self, trainer: "Trainer") -> None:
        """Called after each batch of an evaluation."""

    def on_epoch_end(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        """Called after an epoch was evaluated and recorded.

        Args:
            trainer: of the run.
            row: the epoch's line in metrics.jsonl.
        """

    def on_train_end(self, trainer: "Trainer") -> None:
        """Called after the last step, and after an error or a signal that ends the run."""


class StepTimer(Callback):
    """Adds the seconds of every step, loading included, to the epoch's metrics.

    A GPU computes a step later than it is queued. There the seconds are those between the end of
    the work that was queued before, such as another run's, and the end of the step.
    """

    def __init__(self) -> None:
        self._queued: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def on_step_start(self, trainer: "Trainer") -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        if trainer.device.type == "cuda":
            self._start_event = _record_event(trainer.device)

    def on_step_end(self, trainer: "Trainer") -> None:
        """Stop the clock; on a GPU count the steps that are done, at the end of an epoch all."""
        if trainer.device.type != "cuda":
            trainer.metrics.seconds += time.perf_counter() - self._started
            return
        self._queued.append((self._start_event, _record_event(trainer.device)))
        if trainer.position.step == len(trainer.train):
            self._queued[-1][1].synchronize()
        while self._queued and self._queued[0][1].query():  # type: ignore[no-untyped-call]
            start, end = self._queued.popleft()
            trainer.metrics.seconds += start.elapsed_time(end) / 1000


def _record_event(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


class CheckFirstStep(Callback):
    """Refuses a student whose parameters the first step of a phase leaves as they were."""

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []

    def on_phase_start(self, trainer: "Trainer") -> None:
        """Copy the parameters that the phase trains, unless it continues."""
        assert trainer.phase is not None
        begins = trainer.epoch == 1 and trainer.position.step == 0
        student = trainer.phase.step.student if begins else None
        parameters = [] if student is None else student.parameters()
        self._before = [(p, p.detach().clone()) for p in parameters if p.requires_grad]

    def on_step_end(self, trainer: "Trainer") -> None:
        """Compare them, after the first step that was not skipped."""
        if not self._before or not trainer.metrics.steps:
            return
        if all(torch.equal(parameter, before) for parameter, before in self._before):
            lr = trainer.metrics.lr
            raise TrainingError(
                f"The first step, with the learning rate {lr:.3g}, changed no parameter that "
                "trains, so nothing would be learned. A larger rate, --set optimizer.lr=…, "
                "moves float32 weights; or does a callback, or the network itself, restore them?"
            )
        self._before = []


class StopOnSignal(Callback):
    """Saves the run and stops it after SIGTERM or Ctrl-C."""

    def __init__(self, checkpoints: "PeriodicCheckpoints") -> None:
        self.checkpoints = checkpoints

    def on_step_end(self, trainer: "Trainer") -> None:
        """Stop if a signal came."""
        name = stop_signal()
        if name is not None:
            saved = self.checkpoints.save(trainer)
            outcome = "saved" if saved else "it could not be saved; the checkpoint before stays"
            at = f"step {trainer.position.step} of epoch {trainer.epoch}"
            trainer.run.log(f"stopped by {name} after {at}: {outcome}")
            raise Interrupted(f"Stopped by {name} after {at}; {outcome}.", trainer.run.path)

    def on_evaluate_step(self, trainer: "Trainer") -> None:
        """Stop if a signal came; the evaluation is repeated when the run continues."""
        self.on_step_end(trainer)
