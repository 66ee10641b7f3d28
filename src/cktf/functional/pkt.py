"""Probabilistic knowledge transfer (PKT): the same neighbors with the same probabilities.

Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer",
ECCV 2018, arXiv 1803.10837, equations 4 to 8, with cosine similarities. Departure: a mean over all
B² entries, as in the published results; a row of zeros has similarity 0 and a finite gradient.
"""

import torch
from torch import Tensor

from cktf import _check
from cktf.functional.precision import full_precision


def _neighbors(embedding: Tensor, eps: float) -> Tensor:
    """[B, D] -> [B, B] probabilities of each sample's neighbors, rows that sum to 1."""
    rows = embedding.float()
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / norms.clamp_min(eps)
    # Twice the similarity: the factor cancels in the probabilities.
    # Rounding could make it negative where rows are opposite.
    similarity = (rows @ rows.T + 1).clamp_min(0)
    return similarity / similarity.sum(1, keepdim=True)


@full_precision
def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor, eps: float = 1e-7) -> Tensor:
    """Mean over the B² pairs of `q_T log((q_T + ε)/(q_S + ε))`.

    Args:
        student_embedding: [B, D_s].
        teacher_embedding: [B, D_t]; carries no gradient.
        eps: added inside the logarithm.

    Returns:
        Scalar float32, in nats per pair.

    Raises:
        ShapeError: unequal batch sizes, or inputs that are no rows.

    >>> rows = torch.rand(4, 3)
    >>> abs(pkt_loss(rows, 2 * rows).item()) < 1e-6
    True
    """
    _check.paired_vectors("PKT", student_embedding, teacher_embedding)
    student = _neighbors(student_embedding, eps)
    teacher = _neighbors(teacher_embedding.detach(), eps)
    log_ratio = ((teacher + eps) / (student + eps)).log()
    return torch.dot(teacher.view(-1), log_ratio.view(-1)) / log_ratio.numel()
