"""Variational information distillation (VID): the student predicts the teacher's maps.

Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
arXiv 1904.05835, equations 4 to 6. Departure: a constant of the Gaussian is left out, as in the
published results.
"""

from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.errors import ShapeError


def vid_loss(
    predicted_mean: Tensor, teacher_map: Tensor, log_scale: Tensor, eps: float = 1e-5
) -> Tensor:
    """Mean of `½((μ − t)²/σ² + log σ²)`, with `σ² = softplus(log_scale) + eps` per channel.

    Args:
        predicted_mean: [B, C, H, W], what the regressor made of the student's map.
        teacher_map: [B, C, H, W]; carries no gradient.
        log_scale: [C], trained.
        eps: smallest variance.

    Returns:
        Scalar float32, in nats per element.

    Raises:
        ShapeError: maps that differ in shape, or another number of scales than channels.

    >>> import torch
    >>> mean = torch.ones(2, 3, 4, 4)
    >>> vid_loss(mean, mean, torch.zeros(3), eps=0.0).exp().item() ** 2  # σ² = log 2
    0.693...
    """
    _check.equal_maps("VID", predicted_mean, teacher_map)
    if log_scale.shape != teacher_map.shape[1:2]:
        raise ShapeError(
            f"VID has one scale for each of the teacher's {teacher_map.shape[1]} channels, given "
            f"log_scale {tuple(log_scale.shape)}."
        )
    variance = (F.softplus(log_scale.float()) + eps).view(-1, 1, 1)
    squares = (predicted_mean.float() - teacher_map.detach().float()).square()
    return 0.5 * (squares / variance + variance.log()).mean()
