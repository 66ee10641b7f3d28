"""Similarity-preserving transfer as an objective: see `cktf.functional.sp`."""

from cktf.batch import Batch
from cktf.functional import sp_loss
from cktf.objectives.base import Loss, Objective, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features


class SP(Objective):
    """Find the same images of a batch alike: products of the last stage's maps.

    `‖G_T − G_S‖² / B²`, with `G` the rows of unit length of `F Fᵀ` over the flattened maps.
    """

    title = "Similarity-preserving transfer"
    paper = "arXiv 1907.09682"
    default_weight = 3000.0
    requires = frozenset({"stages"})
    capturable = True

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        students, teachers = stage_maps("SP", student, teacher)
        return single_term_loss("sp", sp_loss(students[-1], teachers[-1]))
