"""The result of a training."""

from dataclasses import dataclass
from typing import Any

from cktf.engine.accuracy import Accuracy


@dataclass(frozen=True)
class TrainResult:
    """The results of a training.

    Attributes:
        last: accuracy after the last epoch; None without test data.
        best_top1: accuracy of the best epoch, chosen on the test set, in per cent.
        best_row: record of the epoch that is best on held-out images, whose weights the student
            has; None without held-out images, where the student has those of the last epoch.
        seconds: time of the steps of all phases; evaluating, saving and filling memories excluded.
        images_per_second: speed of the main phase.
        peak_memory_mb: peak memory of the run in MiB: of the GPU, or else of the process.
        skipped: number of steps that were skipped, since their numbers were not finite.
    """

    last: Accuracy | None
    best_top1: float | None
    best_row: dict[str, Any] | None
    seconds: float
    images_per_second: float
    peak_memory_mb: float
    skipped: int
