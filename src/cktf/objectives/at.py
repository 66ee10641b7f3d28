"""Attention transfer as an objective: see `cktf.functional.at`."""

from cktf.batch import Batch
from cktf.functional import at_loss
from cktf.objectives.base import Loss, Objective, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features


class AT(Objective):
    """Look where the teacher looks: the energy of every stage's map over its positions.

    `Σ_stages mean (A_S − A_T)²`, with `A(f)` the rows of unit length of the mean of f² over
    channels.
    """

    title = "Attention transfer"
    paper = "arXiv 1612.03928"
    default_weight = 1000.0
    requires = frozenset({"stages"})
    capturable = True

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return single_term_loss("at", at_loss(*stage_maps("AT", student, teacher)))
