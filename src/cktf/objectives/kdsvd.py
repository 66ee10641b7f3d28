"""Singular value decomposition transfer as an objective: see `cktf.functional.kdsvd`."""

from typing import Any

from torch import Tensor
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError, ShapeError
from cktf.functional import kdsvd_loss
from cktf.functional.kdsvd import Axis, check_maps
from cktf.functional.maps import pool_to_smaller
from cktf.objectives.base import BuildContext, Loss, Objective, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features


class KDSVD(Objective):
    """The same relations between the leading directions of neighboring stages.

    `Σ (R_S − R_T)² / B`, with `R = exp(−(v − w)²/8)` over all entries of the leading singular
    vectors of two neighboring stages' maps.

    Args:
        rank: singular vectors kept of each teacher map.
        axis: vectors over the `channel`s or over the `width`; by default the channels where the
            networks have equally many, else the width.
    """

    title = "Singular value decomposition transfer"
    paper = "arXiv 1807.06819"
    requires = frozenset({"stages"})

    def __init__(self, rank: int = 1, axis: Axis | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise MethodError(f"KDSVD keeps 1 singular vector or more, given rank {rank}.")
        self.rank, self.axis = rank, axis

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks with two stages or more."""
        objective = cls(**options)
        maps = _pooled_maps(*context.both_features("KDSVD"))
        try:
            check_maps(*maps, objective.rank, objective.axis)
        except ShapeError as error:
            raise MethodError(str(error)) from error
        return objective

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch; larger maps are average-pooled."""
        students, teachers = _pooled_maps(student, teacher)
        return single_term_loss("kdsvd", kdsvd_loss(students, teachers, self.rank, self.axis))


def _pooled_maps(
    student: Features, teacher: Features | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The stages' maps of both networks, the larger of each pair pooled to the other."""
    maps = zip(*stage_maps("KDSVD", student, teacher), strict=True)
    students, teachers = zip(*(pool_to_smaller(s, t) for s, t in maps), strict=True)
    return students, teachers
