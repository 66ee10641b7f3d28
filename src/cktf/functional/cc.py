"""Correlation congruence (CC): neighbors are displaced from the teacher in unlike directions.

Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019,
arXiv 1904.01802. Departure: the form of the published results, which is far from the paper's: the
products of the absolute displacements of neighboring samples.
"""

import torch
from torch import Tensor

from cktf import _check


def cc_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over the B−1 neighbors of `Σ_d δ_i δ_{i+1}`, with `δ = |student − teacher|`.

    Args:
        student_embedding: [B, D], B of 2 or more.
        teacher_embedding: [B, D], of a trained layer: carries gradient to it.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal shapes, or a batch of one.

    >>> cc_loss(torch.zeros(3, 2), torch.ones(3, 2)).item()
    2.0
    """
    _check.equal_vectors("CC", student_embedding, teacher_embedding)
    _check.at_least_two("CC", student_embedding)
    delta = student_embedding.float() - teacher_embedding.float()
    total: Tensor = torch.linalg.vector_norm(delta[:-1] * delta[1:], 1)
    return total / (len(delta) - 1)
