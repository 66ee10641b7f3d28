"""Probabilistic knowledge transfer as an objective: see `cktf.functional.pkt`."""

from cktf.batch import Batch
from cktf.functional import pkt_loss
from cktf.objectives.base import Loss, Objective, single_term_loss
from cktf.objectives.pairs import embeddings
from cktf.taps import Features


class PKT(Objective):
    """The same neighbors with the same probabilities, by cosine similarity of embeddings.

    Mean over the B² pairs of `q_T log(q_T / q_S)`, with `q` the similarities, mapped to [0, 1], of
    rows that sum to 1.
    """

    title = "Probabilistic knowledge transfer"
    paper = "arXiv 1803.10837"
    default_weight = 30000.0
    requires = frozenset({"embedding"})
    capturable = True

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return single_term_loss("pkt", pkt_loss(*embeddings("PKT", student, teacher)))
