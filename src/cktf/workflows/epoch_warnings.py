"""Warnings of what goes wrong in training, from the records of its epochs.

They read numbers that each epoch records anyway, so no step waits for them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cktf.engine import MAIN, Accuracy, Callback, Trainer, standard_error
from cktf.errors import add_arguments
from cktf.workflows.run_warnings import is_guess

# From this epoch on accuracy and contrast are judged, or from the last of a shorter run.
_JUDGED_FROM = 3
# A loss that rises by more than this share of itself, above where it began, diverges.
_RISE = 0.5
# A contrastive loss this near to that of knowing nothing, for so many epochs, stays there. One of
# features that tell images apart passes it, upwards too.
_NEAR, _STAYS = 5e-3, 3


@dataclass(frozen=True)
class EpochWarnings(Callback):
    """Warns once of each thing that goes wrong in training, from the records of its epochs.

    Attributes:
        epochs: of the main phase.
        role: what the network that trains is called.
        lr: peak learning rate.
        first_loss: before training.
        guess: accuracy of guessing the most frequent class of the test images, from 0 to 1.
        test_images: their number; 0 without any.
        teacher: its accuracy on the test images; None where it cannot be measured.
        uninformed: loss of a student that tells no image from another, by contrastive term.
        tell: called with each new warning.
    """

    epochs: int
    role: str
    lr: float
    first_loss: float
    guess: float
    test_images: int
    teacher: Accuracy | None
    uninformed: Mapping[str, float]
    tell: Callable[[str], None]

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """Tell what the epoch's record has added."""
        rows = trainer.run.rows()
        known = self.find(rows[:-1])
        for kind, warning in self.find(rows).items():
            if kind not in known:
                self.tell(warning)

    def find(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """All warnings that the records of the epochs give, by kind."""
        main = [row for row in rows if row["phase"] == MAIN]
        warnings = {"loss": self._rising_loss(main), "skipped": self._skipped_steps(rows)}
        if main and len(main) >= min(_JUDGED_FROM, self.epochs):
            warnings["accuracy"] = self._accuracy(main)
            for name in self.uninformed:
                warnings[name] = self._uninformed_term(name, main)
        return {kind: add_arguments(warning) for kind, warning in warnings.items() if warning}

    def _rising_loss(self, main: Sequence[Mapping[str, Any]]) -> str:
        losses = [self.first_loss, *(row["loss"] for row in main)]
        for epoch, (before, loss) in enumerate(pairwise(losses), start=1):
            if loss - before > _RISE * max(abs(before), abs(self.first_loss)):
                return (
                    f"The loss rose in epoch {epoch}, from {before:.4g} to {loss:.4g}: training "
                    f"diverges. Try --set optimizer.lr={self.lr / 10:g} or --set optimizer.clip=1."
                )
        return ""

    def _skipped_steps(self, rows: Sequence[Mapping[str, Any]]) -> str:
        skipped = sum(row["skipped"] for row in rows)
        if not skipped:
            return ""
        return (
            f"{skipped} steps were skipped, since their loss or gradient was not finite; log.txt "
            f"names them. Try --set optimizer.lr={self.lr / 10:g}, and look for NaN in the images."
        )

    def _accuracy(self, main: Sequence[Mapping[str, Any]]) -> str:
        top1 = main[-1].get("test_top1")
        if top1 is None:
            return ""
        if is_guess(top1 / 100, self.test_images, self.guess):
            return (
                f"After epoch {len(main)} the {self.role} is right on {top1:.2f} % of the test "
                f"images, about as by guessing ({100 * self.guess:.2f} %). Try --set "
                f"optimizer.lr={self.lr / 10:g}, more epochs, a {self.role} with trained "
                "weights, or another one."
            )
        margin = 2 * standard_error(top1, self.test_images)
        is_last = len(main) == self.epochs
        if is_last and self.teacher is not None and self.teacher.top1 < top1 - margin:
            return (
                f"The student ({top1:.2f} %) is more accurate than its teacher "
                f"({self.teacher.top1:.2f} %). A better teacher, or training on labels alone, may "
                "do more."
            )
        return ""

    def _uninformed_term(self, name: str, main: Sequence[Mapping[str, Any]]) -> str:
        losses = [row["terms"].get(name, math.nan) for row in main[-_STAYS:]]
        uninformed = self.uninformed[name]
        near = [abs(loss - uninformed) < _NEAR * uninformed for loss in losses]
        if len(near) < _STAYS or not all(near):
            return ""
        return (
            f"The contrastive loss {name} stays at {losses[-1]:.4g}, that of features which tell "
            "no image from another. Try center=true in the method's options, a lower learning "
            "rate, or other taps."
        )
