"""Relational knowledge distillation (RKD): distances and angles between samples.

Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, equations 4
to 9. Departure: the angles of all triples, and their gradient, are formed a block of corner samples
at a time, so that the B³ angles are never in memory at once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cktf import _check
from cktf.functional.precision import full_precision

_EPSILON = 1e-12
# Elements of one block's differences and angles: 1 MiB in float32, which a cache holds.
_BLOCK = 1 << 18
# A GPU is fastest with few large blocks: 128 MiB each.
_GPU_BLOCK = 1 << 25


def _distances(embedding: Tensor) -> Tensor:
    """[B, D] -> [B, B] Euclidean distances, in units of their mean over unequal pairs."""
    squares = embedding.square().sum(1)
    squared = squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * embedding @ embedding.T
    diagonal = torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    distance = squared.clamp_min(_EPSILON).sqrt().masked_fill(diagonal, 0.0)
    positive = distance > 0
    return distance / (distance.sum() / positive.sum())


def _directions(embedding: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors from corners to all samples [corners, B, D], 0 to itself, and 1/distance."""
    difference = embedding.unsqueeze(0) - embedding[corners].unsqueeze(1)
    distance = torch.linalg.vector_norm(difference, dim=2, keepdim=True)
    inverse = torch.where(distance > _EPSILON, 1 / distance, 0.0)
    return difference.mul_(inverse), inverse


class _AngleLoss(torch.autograd.Function):
    """Mean smooth-L1 difference of all angles; its gradient is formed on the way."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        batch, dim = len(student), max(student.shape[1], teacher.shape[1])
        block = _BLOCK if student.device.type == "cpu" else _GPU_BLOCK
        size = max(1, block // (batch * (batch + dim)))
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        for corners in torch.split(torch.arange(batch, device=student.device), size):
            student_rays, inverse = _directions(student, corners)
            teacher_rays = _directions(teacher, corners)[0]
            difference = student_rays @ student_rays.mT
            difference -= teacher_rays @ teacher_rays.mT
            slope = difference.clamp(-1, 1)
            # Half the square up to 1, then straight on.
            total += (difference.sub_(slope, alpha=0.5).mul_(slope)).sum()
            if ctx.needs_input_grad[0]:
                ray_gradient = 2 * (slope @ student_rays)
                radial = (student_rays * ray_gradient).sum(2, keepdim=True)
                ray_gradient.addcmul_(student_rays, radial, value=-1).mul_(inverse)
                gradient += ray_gradient.sum(0)
                gradient[corners] -= ray_gradient.sum(1)
        ctx.save_for_backward(gradient)
        ctx.triples = batch**3
        mean: Tensor = total / ctx.triples
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_output / ctx.triples), None


@full_precision
def rkd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Tensor:
    """Smooth-L1 difference of pairwise distances and of the cosines of all angles.

    Args:
        student_embedding: [B, D_s], B of 2 or more.
        teacher_embedding: [B, D_t]; carries no gradient.
        distance_weight: of the mean over the B² distances; 0 leaves them out.
        angle_weight: of the mean over the B³ angles; 0 leaves them out.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal batch sizes, or a batch of one.

    >>> rows = torch.rand(4, 3)
    >>> rkd_loss(rows, 2 * rows).item() < 1e-9  # neither depends on scale
    True
    """
    _check.paired_vectors("RKD", student_embedding, teacher_embedding)
    _check.at_least_two("RKD", student_embedding)
    student, teacher = student_embedding.float(), teacher_embedding.detach().float()
    total = torch.zeros((), device=student.device)
    if distance_weight:
        distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
        total = total + distance_weight * distance
    if angle_weight:
        total = total + angle_weight * _AngleLoss.apply(student, teacher)
    return total
