"""Neuron selectivity transfer as an objective: see `cktf.functional.nst`."""

from cktf.batch import Batch
from cktf.functional import nst_loss
from cktf.objectives.base import Loss, Objective, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features


class NST(Objective):
    """Channels that select the same regions: the distribution of a map's channels over positions.

    `Σ_stages mean k(t, t) + mean k(s, s) − 2 mean k(s, t)` over channels of unit length, with
    `k(x, y) = (x·y)²`: a squared maximum mean discrepancy.
    """

    title = "Neuron selectivity transfer"
    paper = "arXiv 1707.01219"
    default_weight = 50.0
    requires = frozenset({"stages"})
    capturable = True

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return single_term_loss("nst", nst_loss(*stage_maps("NST", student, teacher)))
