"""FitNet as an objective: see `cktf.functional.fitnet`."""

from typing import Any

import torch
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import fitnet_loss
from cktf.objectives.adapters import Regressor
from cktf.objectives.base import BuildContext, Loss, Objective, Phase, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features


class FitNet(Objective):
    """Predict a middle map of the teacher, the hint, from the student's through a regressor.

    Mean squared difference of the regressor's map and the teacher's. The hint is a term of the sum,
    as in the published results, where the paper trains it first: see `staged`.

    Args:
        student, teacher: shapes [B, C, H, W] of the two maps.
        hint: which stage, from 1; the last where there are fewer.
        staged: the paper's two stages: first the student's layers up to the hint on this loss
            alone, then the whole student on the other terms (its own: `fitnet+kd`).
        init_lr: learning rate of the first of the two stages.
    """

    title = "FitNet: hints for thin deep nets"
    paper = "arXiv 1412.6550"
    default_weight = 100.0
    requires = frozenset({"stages"})
    capturable = True

    def __init__(
        self,
        student: torch.Size,
        teacher: torch.Size,
        hint: int = 2,
        staged: bool = False,
        init_lr: float = 0.05,
    ) -> None:
        super().__init__()
        if hint < 1:
            raise MethodError(f"FitNet's hint is a stage, from 1, given {hint}.")
        self.hint, self.init_lr, self.only_initializes = hint, init_lr, staged
        self.regressor = Regressor(student, teacher, relu=True)

    @classmethod
    def from_setting(cls, context: BuildContext, hint: int = 2, **options: Any) -> Self:
        """Build it for the maps of two networks with stages."""
        student, teacher = _hints(*context.both_features("FitNet"), hint)
        return cls(student.shape, teacher.shape, hint, **options)

    def phases(self) -> list[Phase]:
        """The hint alone, in the paper's own order."""
        return [Phase("fitnet", self, self.init_lr)] if self.only_initializes else []

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        maps = _hints(student, teacher, self.hint)
        return single_term_loss("fitnet", fitnet_loss(*self.regressor(*maps)))


def _hints(
    student: Features, teacher: Features | None, hint: int
) -> tuple[torch.Tensor, torch.Tensor]:
    students, teachers = stage_maps("FitNet", student, teacher)
    position = min(hint, len(students)) - 1
    return students[position], teachers[position]
