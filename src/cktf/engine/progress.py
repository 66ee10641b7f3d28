"""Progress of training in the terminal."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cktf.engine.callbacks import Callback
from cktf.engine.step import MAIN

if TYPE_CHECKING:
    from cktf.engine.trainer import Trainer


def announce(text: str, show: bool) -> None:
    """Print a line to standard error if `show` is set; a run goes on where that fails."""
    if show:
        with suppress(OSError, ValueError):
            Console(stderr=True).print(text, highlight=False, markup=False)


class ProgressBar(Callback):
    """Shows a bar for each phase with loss, accuracy and speed; without a terminal, epoch lines."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def on_phase_start(self, trainer: "Trainer") -> None:
        """Start a bar at the epochs and steps that are done."""
        self.on_train_end(trainer)
        assert trainer.phase is not None
        name, epochs, steps = trainer.phase.name, trainer.phase.epochs, len(trainer.train)
        self._label = self.title if name == MAIN else f"{self.title}: first {name}"
        self._epochs, done = epochs, trainer.epoch - 1
        if not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        completed = done * steps + trainer.position.step
        self._task = self._bar.add_task(
            self._label, total=epochs * steps, completed=completed, epoch=done, state=""
        )
        self._bar.start()

    def on_step_end(self, trainer: "Trainer") -> None:
        """Advance the bar by one step."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def on_epoch_end(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        """Show the epoch's numbers."""
        top1 = row.get("test_top1")
        accuracy = "" if top1 is None else f"top-1 {top1:5.2f} %  "
        state = f"loss {row['loss']:7.3f}  {accuracy}{row['images_per_second']:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, epoch=trainer.epoch, state=state)
        else:
            line = f"{self._label:<24} epoch {trainer.epoch}/{self._epochs}  {state}"
            with suppress(OSError, ValueError):
                print(line, flush=True)

    def on_train_end(self, trainer: "Trainer") -> None:
        """Remove the bar."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.stop()
            self._bar = None
