"""Flow of the solution procedure (FSP): how one stage's channels go with the next one's.

Source: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
Transfer Learning", CVPR 2017, equations 1 and 2. Departure: mean squared error, as published by
others; the paper writes a weighted sum.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf import _check
from cktf.errors import ShapeError
from cktf.functional.maps import pool_to_size
from cktf.functional.precision import full_precision


def _flow(earlier: Tensor, later: Tensor) -> Tensor:
    """`(1/HW) Σ f gᵀ` of neighboring maps: [B, C, C'] float32."""
    f = pool_to_size(earlier, later.shape[-2:]).float().flatten(2)
    g = pool_to_size(later, earlier.shape[-2:]).float().flatten(2)
    return f @ g.transpose(1, 2) / f.shape[2]


@full_precision
def fsp_loss(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Sum over neighboring maps of the mean squared difference of their flows.

    Args:
        student_maps: two or more [B, C, H, W], the stem and the stages.
        teacher_maps: as many, with the same channels; carry no gradient.

    Returns:
        Scalar float32.

    Raises:
        ShapeError: unequal numbers of maps, of samples or of channels, or a single map.

    >>> maps = [torch.rand(2, 3, 4, 4), torch.rand(2, 5, 2, 2)]
    >>> fsp_loss(maps, maps).item()
    0.0
    """
    check_maps(student_maps, teacher_maps)
    teacher = [t.detach() for t in teacher_maps]
    pairs = zip(pairwise(student_maps), pairwise(teacher), strict=True)
    parts = [F.mse_loss(_flow(*s), _flow(*t)) for s, t in pairs]
    return torch.stack(parts).sum()


def check_maps(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> None:
    """Raise ShapeError unless there are two or more maps, with equal channels."""
    _check.paired_maps("FSP", student_maps, teacher_maps)
    if len(student_maps) < 2:
        raise ShapeError("FSP compares neighboring maps and needs two or more, given one.")
    for k, (s, t) in enumerate(zip(student_maps, teacher_maps, strict=True)):
        if s.shape[1] != t.shape[1]:
            raise ShapeError(
                f"FSP needs equal channels; at map {k} the student has {s.shape[1]}, the teacher "
                f"{t.shape[1]}. Use networks of equal widths, or another method."
            )
