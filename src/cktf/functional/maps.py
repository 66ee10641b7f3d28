"""Fit the feature maps of two networks to each other: sizes, and numbers of stages."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
U = TypeVar("U")


def average_pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """`F.adaptive_avg_pool2d`, [B, C, H, W] -> [B, C, h, w], deterministic where that is asked for.

    On a GPU, PyTorch has no deterministic gradient of it. There the averages are products with the
    weights of the windows, on both axes.
    """
    if not _must_be_deterministic(maps):
        return F.adaptive_avg_pool2d(maps, size)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    rows, columns = (weights.to(dtype) for weights in _window_weights(maps, size))
    with torch.autocast(maps.device.type, enabled=False):
        return (rows @ maps.to(dtype) @ columns.mT).to(maps.dtype)


def average_pool_gradient(gradient: Tensor, maps: Tensor) -> Tensor:
    """Gradient of `average_pool` by its input maps from that by its output, both float32."""
    if _must_be_deterministic(maps):
        rows, columns = _window_weights(maps, gradient.shape[2:])
        return rows.mT @ gradient @ columns
    map_gradient: Tensor = torch.ops.aten._adaptive_avg_pool2d_backward(gradient, maps)
    return map_gradient


def _must_be_deterministic(maps: Tensor) -> bool:
    return maps.is_cuda and torch.are_deterministic_algorithms_enabled()


def _window_weights(maps: Tensor, size: Sequence[int]) -> list[Tensor]:
    """Weights [h, H] and [w, W] of a map's positions in the averages of adaptive windows."""
    weights = []
    for side, windows in zip(maps.shape[-2:], size, strict=True):
        position = torch.arange(side, device=maps.device) * windows
        start = torch.arange(windows, device=maps.device).unsqueeze(1) * side
        # Window k averages positions floor(k·side / windows) to ceil((k + 1)·side / windows) - 1.
        inside = (position > start - windows) & (position < start + side)
        weights.append(inside / inside.sum(1, keepdim=True))
    return weights


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
    return average_pool(feature_map, (height, width))


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
