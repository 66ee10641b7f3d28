"""FitNet: the student's middle map, through a regressor, predicts the teacher's.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, equation 3.
Departure: a mean over all elements, as in the published results, where the paper halves a sum.
"""

from torch import Tensor
from torch.nn import functional as F

from cktf import _check


def fitnet_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of two maps.

    Args:
        student_map: [B, C, H, W], what the regressor gave.
        teacher_map: [B, C, H, W]; carries no gradient.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: the maps differ in shape.

    >>> import torch
    >>> fitnet_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0)).item()
    4.0
    """
    _check.equal_maps("FitNet", student_map, teacher_map)
    return F.mse_loss(student_map.float(), teacher_map.detach().float())
