"""When a run saves a checkpoint, what it does if that fails, and upgrades of older checkpoints."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cktf.engine.callbacks import Callback
from cktf.engine.config import CheckpointConfig
from cktf.engine.progress import announce

if TYPE_CHECKING:
    from cktf.engine.trainer import Trainer

CHECKPOINT_VERSION = 5
_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class TrainingPosition:
    """How much of a run is done: epochs over all phases, and steps of the epoch after them."""

    epochs: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"after {self.epochs} epochs and {self.step} steps"


class PeriodicCheckpoints(Callback):
    """Saves a run every few minutes or epochs, at the end of a phase, and after a failed save."""

    def __init__(self, config: CheckpointConfig, title: str, show: bool) -> None:
        self.config, self.title, self.show = config, title, show
        # Position of the last checkpoint.
        self.saved: TrainingPosition | None = None
        self._failed = False
        self._last_attempt = time.monotonic()

    def on_step_end(self, trainer: "Trainer") -> None:
        """Save if enough time has passed."""
        if self._overdue():
            self.save(trainer)

    def on_epoch_end(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        """Save at the end of a phase, after a failed save, and as the configuration says."""
        every, epochs = self.config.epochs, trainer.position.epochs
        ends_phase = trainer.phase is not None and trainer.epoch == trainer.phase.epochs
        last = ends_phase or trainer.is_finished
        if last or self._failed or self._overdue() or (every > 0 and epochs % every == 0):
            self.save(trainer)

    def save(self, trainer: "Trainer") -> bool:
        """Write a checkpoint; if that fails, report it, return False and go on."""
        position, run = trainer.position, trainer.run
        trainer.raise_if_nonfinite()
        if self.saved == position:
            return True
        started = time.monotonic()
        try:
            name = f"{position.epochs:06d}-{position.step:09d}"
            run.checkpoints.save(trainer.state_dict(), name)
        except OSError as error:
            message = (
                f"The checkpoint {position} could not be written ({error.strerror or error}). "
                f"The one before it is whole. Training goes on, and it is tried again; make room "
                f"in {run.path}."
            )
        else:
            message = f"The checkpoint {position} could be written again." if self._failed else ""
            self.saved = position
            run.log(f"saved {position} in {time.monotonic() - started:.3f} s")
        self._failed = self.saved != position
        if message:
            run.log(message)
            announce(f"{self.title}: {message}", self.show)
        self._last_attempt = time.monotonic()
        return not self._failed

    def _overdue(self) -> bool:
        wait = 60 * self.config.minutes
        if self._failed:
            wait = min(wait, _RETRY_SECONDS) if wait else _RETRY_SECONDS
        return 0 < wait <= time.monotonic() - self._last_attempt


def upgrade_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint of version 4 to the present format; ValueError for other versions."""
    if state["version"] == 4:
        metrics = state.pop("tally")
        metrics["steps"] = metrics.pop("counted")
        metrics["skipped_in_a_row"] = metrics.pop("in_a_row")
        return state | {
            "version": CHECKPOINT_VERSION,
            "identity": None,
            "position": state.pop("place"),
            "metrics": metrics,
            "best": state.pop("choice"),
        }
    if state["version"] != CHECKPOINT_VERSION:
        raise ValueError(f"it is of version {state['version']}, not {CHECKPOINT_VERSION}")
    return state
