"""Losses and gradient norms of an epoch: summed for the record, and checked to be finite.

Reading a number from a GPU waits for its queued work. So there the numbers of 20 steps are checked
together, and always before a checkpoint. On the CPU, or where steps that are not finite are to be
skipped, every step is checked before it changes the student.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.errors import TrainingError
from cktf.objectives import Loss

CHECK_EVERY = 20
_MAX_SKIPPED_IN_A_ROW = 100
_TOTAL, _GRADIENT = "loss", "gradient"


@dataclass(frozen=True)
class NonFiniteStep:
    """A step whose loss or gradient is not finite.

    Attributes:
        step: counted from 1 within the epoch.
        lr: its learning rate.
        names: of the numbers that are not finite: `loss`, `gradient` or terms.
    """

    step: int
    lr: float
    names: list[str]


@dataclass
class EpochMetrics:
    """Losses, gradient norms and times of one epoch so far.

    Attributes:
        names: `loss`, `gradient` (its norm) and the terms.
        sums: sum of each over the steps that were taken, on the device; None before the first.
        steps, skipped, skipped_in_a_row: counts of steps.
        lr: learning rate of the last step that was taken.
        seconds: time of all steps, loading included.
        unchecked: step, learning rate and numbers of each step that was not checked yet.
    """

    names: list[str] = field(default_factory=list)
    sums: Tensor | None = None
    steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    unchecked: list[tuple[int, float, Tensor]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """All but the unchecked steps, for a checkpoint."""
        sums = None if self.sums is None else self.sums.cpu()
        return {k: v for k, v in vars(self).items() if k != "unchecked"} | {"sums": sums}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "EpochMetrics":
        """Restore a state of `state_dict`."""
        metrics = cls(**state)
        metrics.sums = None if metrics.sums is None else metrics.sums.to(device)
        return metrics

    def stack(self, loss: Loss, norm: Tensor) -> Tensor:
        """Stack loss, gradient norm and terms of a step in one tensor."""
        self.names = [_TOTAL, _GRADIENT, *loss.terms]
        return torch.stack([loss.total.detach(), norm, *loss.terms.values()])

    def add(self, numbers: Tensor, lr: float) -> None:
        """Count a step that was taken."""
        self.lr = lr
        self.sums = numbers.clone() if self.sums is None else self.sums.add_(numbers)
        self.steps, self.skipped_in_a_row = self.steps + 1, 0

    def skip(self, epoch: int, step: int) -> None:
        """Count a step that was skipped; TrainingError after 100 in a row: the weights are NaN."""
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{_MAX_SKIPPED_IN_A_ROW} steps in a row were not finite, the last of them step "
                f"{step} of epoch {epoch}: there is nothing left to skip to. Try a smaller "
                "optimizer.lr."
            )

    def find_nonfinite_step(self) -> NonFiniteStep | None:
        """Return the first unchecked step that is not finite, if any; waits for the device."""
        if not self.unchecked:
            return None
        finite = torch.stack([numbers for _, _, numbers in self.unchecked]).isfinite().tolist()
        steps, self.unchecked = self.unchecked, []
        for (step, lr, _), row in zip(steps, finite, strict=True):
            if not all(row):
                names = [name for name, good in zip(self.names, row, strict=True) if not good]
                return NonFiniteStep(step, lr, names)
        return None

    def means(self) -> dict[str, Any]:
        """Compute means over the steps that were taken, for the record."""
        if self.sums is None:
            raise TrainingError(
                "No step of the epoch was finite, and all were skipped. Look at the images, and "
                "try a smaller optimizer.lr."
            )
        means = dict(zip(self.names, (self.sums.double() / self.steps).tolist(), strict=True))
        loss, gradient = means.pop(_TOTAL), means.pop(_GRADIENT)
        return {
            "loss": loss,
            "terms": means,
            "gradient_norm": gradient,
            "lr": self.lr,
            "skipped": self.skipped,
        }


def gradient_norm(parameters: Sequence[Tensor], clip: float | None) -> Tensor:
    """Compute the norm of the whole gradient, on the device; then scale a longer one to `clip`.

    Parameters without a gradient are left out.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def nonfinite_error(
    bad: NonFiniteStep,
    epoch: int,
    batch: Batch | None,
    student: nn.Module,
    parameters: Sequence[Tensor],
) -> TrainingError:
    """Build the error for a step that is not finite, with its likely cause.

    `batch` is None where more steps came after it; else parameters have the gradients of that step.
    """
    terms = [name for name in bad.names if name not in (_TOTAL, _GRADIENT)]
    at = f"at step {bad.step} of epoch {epoch}"
    if terms or _TOTAL in bad.names:
        where = f"The loss is not finite {at}; it comes from: {', '.join(terms) or 'the sum'}"
    else:
        where = f"The gradient is not finite {at}; the loss is"
        if batch is not None:
            for name, parameter in student.named_parameters():
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                    where += f", and the first parameter at fault is {name}"
                    break
    if batch is None:
        cause = (
            "not known, since it was seen some steps later. --on-nonfinite skip checks every step; "
            "a tenth of the learning rate, --set optimizer.lr=…, or --set optimizer.clip=1 may do."
        )
    elif not bool(batch.images.isfinite().all()):
        whole = batch.images.flatten(1).isfinite().all(dim=1)
        samples = batch.index[~whole].tolist()[:5]
        cause = f"the images of samples {samples} hold NaN or infinity: mend or leave them out."
    elif not all(bool(p.isfinite().all()) for p in parameters):
        cause = (
            "weights grew without bound in the steps before. Try a tenth of the learning rate with "
            "--set optimizer.lr=…, or --set optimizer.clip=1."
        )
    else:
        cause = (
            "too large a learning rate, or numbers too large for the precision. Try a tenth with "
            "--set optimizer.lr=…, --set optimizer.clip=1, or --set runtime.precision=float32."
        )
    return TrainingError(
        f"{where}. The learning rate was {bad.lr:.3g}. Likely cause: {cause} Or go on without such "
        "steps: --on-nonfinite skip."
    )
