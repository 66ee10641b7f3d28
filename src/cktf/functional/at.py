"""Attention transfer (AT): make the student look where the teacher looks.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017,
arXiv 1612.03928, equation 2. Departure: mean squared difference, as in the published results,
where the paper writes a norm; hence the usual weight of 1000.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.functional.maps import pool_to_smaller


def attention(feature_map: Tensor) -> Tensor:
    """Where a map is active: [B, C, H, W] -> [B, H·W] float32, rows of unit length."""
    return F.normalize(feature_map.float().square().mean(dim=1).flatten(1), dim=1)


def at_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over stages of the mean squared difference of attention.

    Args:
        student_maps: one [B, C_s, H_s, W_s] per stage; channels may differ from the teacher's.
        teacher_maps: one [B, C_t, H_t, W_t] per stage; the larger map is average-pooled.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal numbers of stages or batch sizes, or an input that is no map.

    >>> maps = [torch.rand(2, 3, 4, 4)]
    >>> at_loss(maps, [maps[0] * 5]).item() < 1e-12
    True
    """
    _check.paired_maps("AT", student_maps, teacher_maps)
    pairs = (pool_to_smaller(s, t) for s, t in zip(student_maps, teacher_maps, strict=True))
    return torch.stack([F.mse_loss(attention(s), attention(t)) for s, t in pairs]).sum()
