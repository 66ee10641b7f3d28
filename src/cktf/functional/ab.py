"""Activation boundaries (AB): which units are on, and which are off, as in the teacher.

Source: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
Neurons", AAAI 2019, arXiv 1811.03233, equation 6, with the weights of the published results.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cktf import _check

_SCALE = 3 / 1000


def _boundary(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """Squared distance of every unit from beyond its margin, on the teacher's side; summed."""
    # Written as one hinge: a unit that should be on is mirrored into one that should be off.
    sign = torch.where(teacher > 0, -1.0, 1.0)
    return (sign * student.float() + margin).clamp_min(0).square().sum()


def ab_loss(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], margin: float = 1.0
) -> Tensor:
    """Squared hinge of the student's pre-activations against the signs of the teacher's.

    `Σ_k 2^{k−n} · 3/(1000·B) · Σ (s+m)²·[s > −m, t ≤ 0] + (s−m)²·[s ≤ m, t > 0]`, k = 1…n.

    Args:
        student_maps: one [B, C, H, W] per stage, before the activation and through connectors.
        teacher_maps: the same shapes, before the activation; carry no gradient.
        margin: m, how far beyond the boundary a unit is left alone.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal numbers of stages, or maps that differ in shape.

    >>> on = torch.ones(1, 1, 1, 1)
    >>> ab_loss([2 * on], [on]).item(), round(ab_loss([-on], [on]).item(), 6)
    (0.0, 0.012)
    """
    _check.paired_maps("AB", student_maps, teacher_maps, equal=True)
    last = len(student_maps) - 1
    parts = [
        2.0 ** (k - last) * _boundary(student, teacher.detach(), margin)
        for k, (student, teacher) in enumerate(zip(student_maps, teacher_maps, strict=True))
    ]
    return torch.stack(parts).sum() * (_SCALE / len(student_maps[0]))
