"""What a user sees while a network trains."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def announce(text: str, show: bool) -> None:
    """A line before training."""
    if show:
        Console(stderr=True).print(text, highlight=False, markup=False)


class TrainingProgress:
    """A bar of epochs for one run, with its loss, accuracy and speed; a line on a plain console.

    Args:
        title: what is trained.
        epochs: how many there are.
        steps: batches in an epoch.
        done: epochs that an earlier run has done.
        show: False prints nothing.
    """

    def __init__(self, title: str, epochs: int, steps: int, done: int, show: bool) -> None:
        self.console = Console(stderr=True)
        self.epochs, self.steps, self.title = epochs, steps, title
        self._bar = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not show or not self.console.is_terminal,
        )
        self._plain = show and not self.console.is_terminal
        self._task = self._bar.add_task(
            title, total=epochs * steps, completed=done * steps, epoch=done, state=""
        )

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, count: int = 1) -> None:
        """So many batches are done."""
        self._bar.advance(self._task, count)

    def epoch(self, number: int, loss: float, top1: float | None, rate: float) -> None:
        """Epoch `number` is done."""
        accuracy = "" if top1 is None else f"top-1 {top1:5.2f} %  "
        state = f"loss {loss:7.3f}  {accuracy}{rate:,.0f} images/s"
        self._bar.update(self._task, epoch=number, state=state)
        if self._plain:
            print(f"{self.title:<24} epoch {number}/{self.epochs}  {state}", flush=True)
