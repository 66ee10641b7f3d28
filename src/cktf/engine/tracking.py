"""The record of a run in TensorBoard and other trackers, through those of Accelerate.

A tracker that fails is left out from then on; the run goes on.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from cktf.engine.callbacks import Callback
from cktf.engine.run_folder import RunFolder
from cktf.errors import TrainingError, nearest

if TYPE_CHECKING:
    from cktf.engine.trainer import Trainer

TENSORBOARD, PROJECT = "tensorboard", "cktf"


def available_trackers(names: Sequence[str] | None) -> list[str]:
    """Check the names of trackers; by default TensorBoard where it is installed.

    Raises:
        TrainingError: a tracker that Accelerate does not know, or that is not installed.
    """
    there = [str(name) for name in get_available_trackers()]
    if names is None:
        return [TENSORBOARD] if TENSORBOARD in there else []
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrainingError(
                f"There is no tracker {name!r}. {nearest(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in there:
            raise TrainingError(f"The tracker {name} is not installed: pip install {name}.")
    return list(names)


class Trackers(Callback):
    """Sends the record of every epoch to trackers.

    Args:
        names: names of trackers; None for the default.
        config: fields of the recipe by dotted name.
    """

    def __init__(self, names: Sequence[str] | None, config: Mapping[str, Any]) -> None:
        self.names, self.config = available_trackers(names), config
        self._started: list[GeneralTracker] = []

    def on_train_start(self, trainer: "Trainer") -> None:
        """Start the trackers; TensorBoard writes to the folder `tensorboard` of the run."""
        for name in self.names:
            try:
                self._started.append(_start_tracker(name, trainer.run, self.config))
            except Exception as error:
                trainer.run.log(f"{name} cannot be used: {error}")

    def on_epoch_end(self, trainer: "Trainer", row: dict[str, Any]) -> None:
        """Send an epoch's numbers to the trackers."""
        for tracker in list(self._started):
            try:
                tracker.log(scalar_values(row), step=len(trainer.run.rows()))
            except Exception as error:
                self._started.remove(tracker)
                trainer.run.log(f"{tracker.name} is left out from here: {error}")

    def on_train_end(self, trainer: "Trainer") -> None:
        """End the trackers."""
        for tracker in self._started:
            try:
                tracker.finish()
            except Exception as error:
                trainer.run.log(f"{tracker.name} could not be ended: {error}")
        self._started = []


def _start_tracker(name: str, run: RunFolder, config: Mapping[str, Any]) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == TENSORBOARD:
        tracker = kind(TENSORBOARD, str(run.path))
    elif kind.requires_logging_directory:
        tracker = kind(PROJECT, str(run.path))
    else:
        tracker = kind(PROJECT)
    # In newer versions of Accelerate, the constructor does not start a tracker.
    if hasattr(tracker, "start"):
        tracker.start()
    if name == TENSORBOARD:
        # TensorBoard's `add_hparams` would show the configuration as a second run.
        lines = "\n".join(f"    {field}: {value}" for field, value in config.items())
        tracker.writer.add_text("recipe", lines)
    else:
        tracker.store_init_configuration(dict(config))
    return tracker


def scalar_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Collect a row's numbers by name.

    >>> scalar_values({"phase": "train", "loss": 2.5, "terms": {"kd": 2.0}, "test_top1": 9})
    {'loss/kd': 2.0, 'loss': 2.5, 'test_top1': 9.0}
    """
    terms = {f"loss/{name}": float(value) for name, value in row["terms"].items()}
    numbers = {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("epoch", "images")
    }
    return terms | numbers
