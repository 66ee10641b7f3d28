"""What a run records, also to TensorBoard and other trackers, through Accelerate's.

A tracker that fails is left out from then on: it is a view of a run, and no reason to end one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from cktf.engine.run_folder import RunFolder
from cktf.errors import TrainingError, nearest

TENSORBOARD, PROJECT = "tensorboard", "cktf"


def trackers_of(names: Sequence[str] | None) -> list[str]:
    """Trackers that are used: by default TensorBoard where it is installed.

    Raises:
        TrainingError: one that Accelerate does not know, or that is not installed.
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


@contextmanager
def tracked(
    run: RunFolder, names: Sequence[str] | None, config: Mapping[str, Any]
) -> Iterator[None]:
    """Have every row that a run records also sent to trackers.

    Args:
        run: TensorBoard's files go into its folder `tensorboard`.
        names: of trackers; None for the default.
        config: of the run, fields by dotted name.
    """
    started: list[GeneralTracker] = []
    for name in trackers_of(names):
        try:
            started.append(_start(name, run, config))
        except Exception as error:
            run.log(f"{name} cannot be used: {error}")

    def follow(row: Mapping[str, Any]) -> None:
        passes = len(run.rows())
        for tracker in list(started):
            try:
                tracker.log(values_of(row), step=passes)
            except Exception as error:
                started.remove(tracker)
                run.log(f"{tracker.name} is left out from here: {error}")

    run.followers.append(follow)
    try:
        yield
    finally:
        run.followers.remove(follow)
        for tracker in started:
            try:
                tracker.finish()
            except Exception as error:
                run.log(f"{tracker.name} could not be ended: {error}")


def _start(name: str, run: RunFolder, config: Mapping[str, Any]) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == TENSORBOARD:
        tracker = kind(TENSORBOARD, str(run.path))
    elif kind.requires_logging_directory:
        tracker = kind(PROJECT, str(run.path))
    else:
        tracker = kind(PROJECT)
    # Accelerate's newer versions make a tracker first and start it then.
    if hasattr(tracker, "start"):
        tracker.start()
    if name == TENSORBOARD:
        # Its own way to keep a configuration makes a second run of it.
        lines = "\n".join(f"    {field}: {value}" for field, value in config.items())
        tracker.writer.add_text("recipe", lines)
    else:
        tracker.store_init_configuration(dict(config))
    return tracker


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A row's numbers by name.

    >>> values_of({"stage": "train", "epoch": 1, "loss": 2.5, "terms": {"kd": 2.0}, "test_top1": 9})
    {'loss/kd': 2.0, 'loss': 2.5, 'test_top1': 9.0}
    """
    terms = {f"loss/{name}": float(value) for name, value in row["terms"].items()}
    numbers = {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("epoch", "images")
    }
    return terms | numbers
