"""Singular value decomposition transfer (KDSVD): relations of the stages' leading directions.

Source: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition",
ECCV 2018, arXiv 1807.06819, in the form of its later implementations. Departure:
the gradient of nearly equal singular values is bounded, where it would be infinite. As in those
implementations the value depends on the signs that the decomposition gives the teacher's vectors.
A CPU's LAPACK chooses them by chance, so that the value on a GPU is another one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.errors import ShapeError
from cktf.functional.precision import full_precision
from cktf.functional.singular_vectors import right_vectors

Axis = Literal["channel", "width"]

# Vectors of the student beyond the teacher's rank, among which the closest are chosen.
_EXTRA_VECTORS = 3


def _leading(feature_map: Tensor, count: int, axis: Axis) -> tuple[Tensor, Tensor]:
    """Singular values [B, k], as a unit vector, and right vectors [B, L, k] along an axis."""
    rows = feature_map if feature_map.dtype == torch.float64 else feature_map.float()
    rows = rows.flatten(2).mT if axis == "channel" else rows.flatten(1, 2)
    values, vectors = right_vectors(rows, min(count, *rows.shape[1:]))
    return F.normalize(values, dim=1), vectors


def _aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's vector closest to each of the teacher's, with the sign of their product."""
    cosine = student.detach().mT @ teacher
    best = cosine.abs().argmax(1, keepdim=True)
    selection = torch.zeros_like(cosine).scatter_(1, best, cosine.gather(1, best).sign())
    return student @ selection


def _relation(earlier: Tensor, later: Tensor) -> Tensor:
    """`exp(−(v[a] − w[b])²/8)` of neighboring stages' vectors: [B, W', W, k]."""
    return (-(later.unsqueeze(2) - earlier.unsqueeze(1)).square() / 8).exp()


def check_maps(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], rank: int, axis: Axis | None
) -> Axis:
    """Raise ShapeError unless the maps fit; else return the axis that vectors are compared over."""
    _check.paired_maps("KDSVD", student_maps, teacher_maps)
    if len(student_maps) < 2:
        raise ShapeError("KDSVD relates neighboring maps and needs two or more, given one.")
    pairs = list(zip(student_maps, teacher_maps, strict=True))
    axis = axis or ("channel" if all(s.shape[1] == t.shape[1] for s, t in pairs) else "width")
    dim = 1 if axis == "channel" else 3
    for s, t in pairs:
        if s.shape[dim] != t.shape[dim]:
            raise ShapeError(
                f"KDSVD compares vectors over the {axis}: student {s.shape[dim]}, teacher "
                f"{t.shape[dim]}. Pool the larger map first, or use the other axis."
            )
    available = min(
        min(h * w, c) if axis == "channel" else min(c * h, w)
        for _, c, h, w in (m.shape for m in teacher_maps)
    )
    if rank > available:
        raise ShapeError(
            f"KDSVD keeps rank = {rank} singular vectors of each teacher map, and one has "
            f"{available} over the {axis}. Set rank to {available} or less."
        )
    return axis


@full_precision
def kdsvd_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    rank: int = 1,
    axis: Axis | None = None,
) -> Tensor:
    """Squared difference of the relations between neighboring stages, summed, per sample.

    Args:
        student_maps: two or more [B, C_s, H_s, W_s].
        teacher_maps: as many [B, C_t, H_t, W_t]; carry no gradient.
        rank: singular vectors kept of each teacher map.
        axis: vectors over the `channel`s or over the `width`, in which the two networks agree; by
            default the channels where they are equal in number, else the width.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal numbers of maps, of samples or widths, a single map, or one of the
            teacher's that has fewer than `rank` vectors.

    >>> maps = [torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4)]
    >>> kdsvd_loss(maps, maps).item() < 1e-9
    True
    """
    axis = check_maps(student_maps, teacher_maps, rank, axis)
    vectors = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        scale, teacher = _leading(t.detach(), rank, axis)
        student = _aligned(_leading(s, rank + _EXTRA_VECTORS, axis)[1], teacher)
        vectors.append((student * scale.unsqueeze(1), teacher * scale.unsqueeze(1)))
    total = torch.zeros((), device=student_maps[0].device)
    for (s0, t0), (s1, t1) in pairwise(vectors):
        total = total + (_relation(s0, s1) - _relation(t0, t1)).square().sum()
    return (total / len(student_maps[0])).float()
