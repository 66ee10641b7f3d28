"""How CKTF turns a module's map into the vector that its heads read.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, arXiv 2303.07599, section 2, in the form of its implementation:
normalise, pad the channels, pool, flatten. Padding commutes with the other steps and is done last,
on the small vector. Departure: whichever side is narrower is padded; maps of unequal size, or of
more than four windows a side, are pooled to one grid.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cktf.processes import summed

ModuleNorm = Literal["batch", "sample", "none"]
_WINDOW = 8
_GRID = 4
_EPSILON = 1e-12


def module_grid(student: torch.Size, teacher: torch.Size) -> tuple[int, int]:
    """Height and width to which the two maps of a module are pooled.

    Windows of 8x8 as published, where both maps have one size that they divide; otherwise the
    smaller map's size, at most 4x4.

    >>> module_grid(torch.Size([8, 16, 32, 32]), torch.Size([8, 32, 32, 32]))
    (4, 4)
    >>> module_grid(torch.Size([8, 16, 7, 7]), torch.Size([8, 32, 14, 14]))
    (4, 4)
    """
    size = student[-2:]
    windows = [side // _WINDOW for side in size]
    divides = all(side % _WINDOW == 0 for side in size)
    if size == teacher[-2:] and divides and max(windows) <= _GRID:
        return windows[0], windows[1]
    height, width = (min(_GRID, s, t) for s, t in zip(size, teacher[-2:], strict=True))
    return height, width


class _BatchUnit(torch.autograd.Function):
    """Every unit of [B, C, H, W] divided by its L2 norm over the batch of all processes.

    Written out because it stands before every step of CKTF and reads whole maps: as flat rows in
    the order of memory, which a sum over a channels-last batch axis needs ten times as long for.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        rows = _flat(maps)
        squares = summed(rows.square().sum(0))
        scale = squares.clamp_min(_EPSILON**2).rsqrt()
        # Where the norm is held at its smallest, it does not depend on the map.
        cubed = torch.where(squares > _EPSILON**2, scale**3, 0.0)
        ctx.save_for_backward(maps, scale, cubed)
        return _unflat(rows * scale, maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        maps, scale, cubed = ctx.saved_tensors
        rows, gradient = _flat(maps), _flat(grad_output.to(memory_format=_order(maps)))
        along = summed((gradient * rows).sum(0)) * cubed
        return _unflat((gradient * scale).addcmul_(rows, along, value=-1), maps)


def _order(maps: Tensor) -> torch.memory_format:
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _flat(maps: Tensor) -> Tensor:
    """[B, C·H·W] in the order of memory."""
    last = _order(maps) == torch.channels_last
    return (maps.permute(0, 2, 3, 1) if last else maps).flatten(1)


def _unflat(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    if _order(like) == torch.channels_last:
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(batch, channels, height, width)


def module_vector(
    feature_map: Tensor, channels: int, grid: tuple[int, int], norm: ModuleNorm
) -> Tensor:
    """[B, C, H, W] -> [B, channels · grid height · grid width] float32.

    Args:
        feature_map: a stage's map.
        channels: zeros are added on both sides of the map's channels up to this count.
        grid: height and width after average pooling.
        norm: `batch` divides each unit by its L2 norm over the batch (as published), `sample`
            each position by its L2 norm over the channels, `none` nothing.
    """
    values = feature_map.float()
    if norm == "batch":
        values = _BatchUnit.apply(values)
    elif norm == "sample":
        # A sum of squares: a vector norm over a strided axis is slow.
        squares = values.square().sum(1, keepdim=True)
        values = values * squares.clamp_min(_EPSILON**2).rsqrt()
    pooled = F.adaptive_avg_pool2d(values, grid)
    missing = channels - pooled.shape[1]
    return F.pad(pooled, (0, 0, 0, 0, missing // 2, missing - missing // 2)).flatten(1)
