"""Relational knowledge distillation as an objective: see `cktf.functional.rkd`."""

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import rkd_loss
from cktf.objectives.base import Loss, Objective, single_term_loss
from cktf.objectives.pairs import embeddings
from cktf.taps import Features


class RKD(Objective):
    """The same distances between samples, and the same angles at every one of them.

    `25 · smooth-L1` of pairwise distances in units of their mean, `+ 50 · smooth-L1` of the cosines
    of the angles of all triples.

    Args:
        distance_weight: of the distances.
        angle_weight: of the angles.
    """

    title = "Relational knowledge distillation"
    paper = "arXiv 1904.05068"
    requires = frozenset({"embedding"})
    capturable = True

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        if min(distance_weight, angle_weight) < 0 or not distance_weight + angle_weight:
            raise MethodError(
                "RKD's weights are 0 or more, and one is above 0: distance_weight "
                f"{distance_weight}, angle_weight {angle_weight}."
            )
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        pair = embeddings("RKD", student, teacher)
        return single_term_loss("rkd", rkd_loss(*pair, self.distance_weight, self.angle_weight))
