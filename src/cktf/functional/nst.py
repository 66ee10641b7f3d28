"""Neuron selectivity transfer (NST): channels select the same regions as the teacher's.

Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
2017, arXiv 1707.01219, equations 4 and 5, with the squared inner product as kernel. Departure: the
mean kernel is the squared norm of a product of matrices; kernels of single channels are not kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.functional.maps import pool_to_smaller
from cktf.functional.precision import full_precision


def _rows(feature_map: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H·W] float32, rows of unit length."""
    return F.normalize(feature_map.float().flatten(2), dim=2)


def _mean_kernels(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean k(t,t) + mean k(s,s) − 2 mean k(s,t)` of rows, `k(x, y) = (x·y)²`."""
    channels = min(student.shape[1], teacher.shape[1])
    if student.shape[2] < channels:
        # Few positions: Σ (x·y)² = <XᵀX, YᵀY>, and those are small.
        s = student.transpose(1, 2) @ student / student.shape[1]
        t = teacher.transpose(1, 2) @ teacher / teacher.shape[1]
        return (s - t).square().sum((1, 2)).mean()
    kernels = ((teacher, teacher), (student, student), (student, teacher))
    teacher_mean, student_mean, cross_mean = (
        (a @ b.transpose(1, 2)).square().mean() for a, b in kernels
    )
    return teacher_mean + student_mean - 2 * cross_mean


@full_precision
def nst_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Squared maximum mean discrepancy of the channels' selectivity, summed over stages.

    Args:
        student_maps: one [B, C_s, H_s, W_s] per stage; channels may differ from the teacher's.
        teacher_maps: one [B, C_t, H_t, W_t] per stage; the larger map is average-pooled.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal numbers of stages or batch sizes, or an input that is no map.

    >>> maps = [torch.rand(2, 3, 4, 4)]
    >>> abs(nst_loss(maps, maps).item()) < 1e-6
    True
    """
    _check.paired_maps("NST", student_maps, teacher_maps)
    pairs = (pool_to_smaller(s, t) for s, t in zip(student_maps, teacher_maps, strict=True))
    return torch.stack([_mean_kernels(_rows(s), _rows(t)) for s, t in pairs]).sum()
