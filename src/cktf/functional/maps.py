"""Fit two feature maps to each other: sizes, and networks of unequal depth."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
U = TypeVar("U")


def shrink(feature_map: Tensor, size: torch.Size) -> Tensor:
    """A map average-pooled where it is larger than a size: [B, C, H, W] -> [B, C, ≤h, ≤w].

    >>> shrink(torch.rand(2, 3, 8, 2), torch.Size([4, 4])).shape
    torch.Size([2, 3, 4, 2])
    """
    height, width = (
        min(own, wanted) for own, wanted in zip(feature_map.shape[-2:], size, strict=True)
    )
    if (height, width) == feature_map.shape[-2:]:
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, (height, width))


def to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and the smaller width; the teacher's without gradient."""
    return shrink(student, teacher.shape[-2:]), shrink(teacher.detach(), student.shape[-2:])


def paired(student: Sequence[T], teacher: Sequence[U]) -> list[tuple[T, U]]:
    """The stages of two networks, side by side.

    Of the network with more, those at even distances are used, the last among them.

    >>> paired("abcd", "XY")
    [('b', 'X'), ('d', 'Y')]
    """
    count = min(len(student), len(teacher))
    return [
        (student[_spread(k, count, len(student))], teacher[_spread(k, count, len(teacher))])
        for k in range(1, count + 1)
    ]


def _spread(position: int, count: int, available: int) -> int:
    """Which of `available` is the position-th of `count` at even distances, the last included."""
    return round(position * available / count) - 1
