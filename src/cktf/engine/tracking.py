"""The record of a run in TensorBoard and other trackers, through those of Accelerate.

A tracker that fails is left out from then on; the run goes on.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from cktf.engine.callbacks import Callback
from cktf.errors import TrainingError, nearest

if TYPE_CHECKING:
    from cktf.engine.trainer import Trainer

TENSORBOARD, PROJECT = "tensorboard", "cktf"


def available_trackers(names: Sequence[str] | None) -> list[str]:
    """Check the names of trackers: TrainingError if one is unknown to Accelerate or not installed.

    The default is TensorBoard where it is installed.
    """
    installed = [str(name) for name in get_available_trackers()]
    if names is None:
        return [TENSORBOARD] if TENSORBOARD in installed else []
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            hint = nearest(name, LOGGER_TYPE_TO_CLASS)
            raise TrainingError(f"There is no tracker {name!r}. {hint}")
        if name not in installed:
            raise TrainingError(f"The tracker {name} is not installed: pip install {name}.")
    return list(names)


class Trackers(Callback):
    """Sends the record of every epoch to trackers; by default to TensorBoard."""

    def __init__(self, names: Sequence[str] | None, config: Mapping[str, Any]) -> None:
        self.names, self.config = available_trackers(names), config
        self._started: list[GeneralTracker] = []

    def on_train_start(self, trainer: "Trainer") -> None:
        """Start the trackers; TensorBoard writes to the folder `tensorboard` of the run."""
        for name in self.names:
            try:
                self._started.append(self._start_tracker(name, str(trainer.run.path)))
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

    def _start_tracker(self, name: str, folder: str) -> GeneralTracker:
        kind = LOGGER_TYPE_TO_CLASS[name]
        folders = [folder] if kind.requires_logging_directory else []
        tracker = kind(TENSORBOARD if name == TENSORBOARD else PROJECT, *folders)
        # In newer versions of Accelerate, the constructor does not start a tracker.
        if hasattr(tracker, "start"):
            tracker.start()
        if name == TENSORBOARD:
            # TensorBoard's `add_hparams` would show the configuration as a second run.
            lines = "\n".join(f"    {field}: {value}" for field, value in self.config.items())
            tracker.writer.add_text("recipe", lines)
        else:
            tracker.store_init_configuration(dict(self.config))
        return tracker


def scalar_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Collect a row's numbers by name.

    >>> scalar_values({"phase": "train", "loss": 2.5, "terms": {"kd": 2.0}, "test_top1": 9})
    {'loss/kd': 2.0, 'loss': 2.5, 'test_top1': 9.0}
    """
    values = {f"loss/{name}": value for name, value in row["terms"].items()} | dict(row)
    excluded = ("epoch", "images")
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and name not in excluded
    }
