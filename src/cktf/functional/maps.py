"""Fit the feature maps of two networks to each other: sizes, and numbers of stages."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
U = TypeVar("U")


def pool_to_size(feature_map: Tensor, size: torch.Size) -> Tensor:
    """Average-pool a map where it is larger than a size: [B, C, H, W] -> [B, C, ≤h, ≤w].

    >>> pool_to_size(torch.rand(2, 3, 8, 2), torch.Size([4, 4])).shape
    torch.Size([2, 3, 4, 2])
    """
    height, width = (
        min(side, target) for side, target in zip(feature_map.shape[-2:], size, strict=True)
    )
    if (height, width) == feature_map.shape[-2:]:
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, (height, width))


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool both maps to the smaller height and width; the teacher's without gradient."""
    return pool_to_size(student, teacher.shape[-2:]), pool_to_size(
        teacher.detach(), student.shape[-2:]
    )


def pair_stages(student: Sequence[T], teacher: Sequence[U]) -> list[tuple[T, U]]:
    """Pair the stages of two networks.

    Of the network with more, those at even distances are used, the last among them.

    >>> pair_stages("abcd", "XY")
    [('b', 'X'), ('d', 'Y')]
    """
    count = min(len(student), len(teacher))
    positions = (
        [round(k * available / count) - 1 for k in range(1, count + 1)]
        for available in (len(student), len(teacher))
    )
    return [(student[s], teacher[t]) for s, t in zip(*positions, strict=True)]
