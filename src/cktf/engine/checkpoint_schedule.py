"""When a run saves itself, and what becomes of it when it cannot."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cktf.engine.progress import announce
from cktf.engine.run_folder import RunFolder
from cktf.engine.settings import Training

_AGAIN_AFTER = 60.0


@dataclass(frozen=True)
class TrainingPosition:
    """Where a run is: epochs of all stages that are done, and steps of the one that is not."""

    passes: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """In alphabetical order as in time."""
        return f"{self.passes:06d}-{self.step:09d}"

    def __str__(self) -> str:
        return f"after {self.passes} epochs and {self.step} steps"


class Saver:
    """Saves a run by the clock, by epochs, and again after a save that failed.

    Args:
        run: where to.
        training: how often.
        title: of the run, for messages.
        show: whether they are shown.

    Attributes:
        saved: where the last checkpoint was; None before the first.
    """

    def __init__(self, run: RunFolder, training: Training, title: str, show: bool) -> None:
        self.run, self.training, self.title, self.show = run, training, title, show
        self.saved: TrainingPosition | None = None
        self._failed = False
        self._tried_at = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether so much time has passed since the last attempt."""
        wait = 60 * self.training.checkpoint_minutes
        if self._failed:
            wait = min(wait, _AGAIN_AFTER) if wait else _AGAIN_AFTER
        return 0 < wait <= time.monotonic() - self._tried_at

    def due_after(self, passes: int) -> bool:
        """Whether a checkpoint is to follow so many epochs."""
        every = self.training.checkpoint_epochs
        return self._failed or self.overdue or (every > 0 and passes % every == 0)

    def save(self, place: TrainingPosition, state: Callable[[], dict[str, Any]]) -> bool:
        """Write a checkpoint; training goes on if that fails, and it is said.

        Args:
            place: where the run is.
            state: makes what is to be written.

        Returns:
            Whether the run can be continued from there.
        """
        if self.saved == place:
            return True
        began = time.monotonic()
        try:
            self.run.saved.save(state(), place.name)
        except OSError as error:
            self._failed = True
            self._say(
                f"The checkpoint {place} could not be written ({error.strerror or error}). "
                f"The one before it is whole. Training goes on, and it is tried again; make room "
                f"in {self.run.path}."
            )
        else:
            if self._failed:
                self._say(f"The checkpoint {place} could be written again.")
            self._failed, self.saved = False, place
            self.run.log(f"saved {place} in {time.monotonic() - began:.3f} s")
        self._tried_at = time.monotonic()
        return not self._failed

    def _say(self, text: str) -> None:
        self.run.log(text)
        announce(f"{self.title}: {text}", self.show)
