"""Similarity-preserving transfer (SP): images alike to the teacher are alike to the student.

Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682,
equations 1 to 4. Departure: none; the two maps may differ in every size but the batch.
"""

from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.functional.precision import full_precision


def similarity(feature_map: Tensor) -> Tensor:
    """How alike the images of a batch are: [B, ...] -> [B, B] float32, rows of unit length."""
    rows = feature_map.float().flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


@full_precision
def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """`‖G_T − G_S‖² / B²` of the similarity matrices G.

    Args:
        student_map: [B, C_s, H_s, W_s].
        teacher_map: [B, C_t, H_t, W_t]; carries no gradient.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal batch sizes, or an input that is no map.

    >>> import torch
    >>> sp_loss(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 2, 2)).item() < 1e-12
    True
    """
    _check.paired_maps("SP", [student_map], [teacher_map])
    return F.mse_loss(similarity(student_map), similarity(teacher_map.detach()))
