"""CKTF's vector of a module's map, which its heads read.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, arXiv 2303.07599, section 2, in the form of its implementation:
normalize, pad the channels, pool, flatten. Padding commutes with the other steps and is done last,
on the small vector. CIFAR ResNets and wide ResNets are averaged over windows, VGGs and ImageNet's
ResNets globally. Departure: whichever side is narrower is padded; other pairs of networks, maps of
unequal size, or of more than four windows a side are pooled to one grid.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cktf.functional.maps import average_pool, average_pool_gradient
from cktf.processes import sum_over_processes

ModuleNorm = Literal["batch", "sample", "none"]
_WINDOW = 8
_GRID = 4
EPSILON = 1e-12
# Elements of a block: 2 MB of float32.
_BLOCK = 1 << 19


def pooled_grid_size(
    student: torch.Size, teacher: torch.Size, pool_globally: bool = False
) -> tuple[int, int]:
    """Height and width to which the two maps of a module are pooled.

    1x1 for two networks whose maps are averaged globally, else windows of 8x8, both as published;
    where the maps have not one size that these divide, the smaller map's size, at most 4x4.

    >>> pooled_grid_size(torch.Size([8, 16, 32, 32]), torch.Size([8, 32, 32, 32]))
    (4, 4)
    >>> pooled_grid_size(torch.Size([8, 16, 7, 7]), torch.Size([8, 32, 14, 14]))
    (4, 4)
    >>> student, teacher = torch.Size([8, 64, 16, 16]), torch.Size([8, 128, 16, 16])
    >>> pooled_grid_size(student, teacher, pool_globally=True)
    (1, 1)
    """
    if pool_globally:
        return 1, 1
    size = student[-2:]
    windows = [side // _WINDOW for side in size]
    divides = all(side % _WINDOW == 0 for side in size)
    if size == teacher[-2:] and divides and max(windows) <= _GRID:
        return windows[0], windows[1]
    height, width = (min(_GRID, s, t) for s, t in zip(size, teacher[-2:], strict=True))
    return height, width


class _PooledUnits(torch.autograd.Function):
    """Every unit of [B, C, H, W] divided by its L2 norm over the batch of all processes, pooled.

    A custom function because it reads the full maps in every step of CKTF: a few samples at a time,
    so that intermediate values stay in the processor's cache, and in memory order. For backward it
    saves the input map and no other tensor of its size.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, blocks = _to_rows(maps), _blocks(maps)
        squares = torch.zeros(rows.shape[1], device=maps.device)
        for block in blocks:
            squares += _multiply(rows[block], None).sum(0)
        squares = sum_over_processes(squares)
        scale = squares.clamp_min(EPSILON**2).rsqrt()
        # Where the norm is held at its smallest, it does not depend on the map.
        cubed = torch.where(squares > EPSILON**2, scale**3, 0.0)
        ctx.save_for_backward(maps, scale, cubed)
        parts = (_to_maps(_multiply(rows[block], scale), maps[block]) for block in blocks)
        return _join([average_pool(part, grid) for part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        maps, scale, cubed = ctx.saved_tensors
        gradient = grad_output.contiguous(memory_format=_memory_format(maps))
        blocks = _blocks(maps)
        projection = torch.zeros_like(scale)
        for block in blocks:
            part = maps[block].float()
            projection += _unpool(gradient[block], part).mul_(_to_rows(part)).sum(0)
        projection = sum_over_processes(projection) * cubed
        map_gradient = torch.empty_like(_to_rows(maps))
        for block in blocks:
            part = maps[block].float()
            scaled = _unpool(gradient[block], part).mul_(scale)
            map_gradient[block] = scaled.addcmul_(_to_rows(part), projection, value=-1)
        return _to_maps(map_gradient, maps), None


class _Pooled(torch.autograd.Function):
    """Maps [B, C, H, W] pooled in float32, a few samples at a time, in memory order both ways."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, grid: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps)
        return _join([average_pool(maps[block].float(), grid) for block in _blocks(maps)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (maps,) = ctx.saved_tensors
        gradient = grad_output.contiguous(memory_format=_memory_format(maps))
        map_gradient = torch.empty_like(_to_rows(maps))
        for block in _blocks(maps):
            shape = torch.empty_like(maps[block], dtype=gradient.dtype)
            map_gradient[block] = _unpool(gradient[block], shape)
        return _to_maps(map_gradient, maps), None


def _multiply(rows: Tensor, factor: Tensor | None) -> Tensor:
    """Rows times a factor, or times themselves, in float32.

    They are converted first: an operation on two types takes twice the time.
    """
    if rows.dtype == torch.float32:
        return rows * (rows if factor is None else factor)
    converted = rows.float()
    return converted.mul_(converted if factor is None else factor)


def _blocks(maps: Tensor) -> list[slice]:
    """Slices of samples to process at a time; on a CPU small enough for its cache."""
    batch, size = len(maps), max(1, maps[0].numel())
    step = max(1, _BLOCK // size) if maps.device.type == "cpu" else batch
    return [slice(start, start + step) for start in range(0, batch, step)]


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _unpool(gradient: Tensor, maps: Tensor) -> Tensor:
    """Gradient of an average pool by its input maps: new [B, C·H·W] in their memory order."""
    if gradient.shape[2:] == (1, 1):
        wide = (gradient / maps[0, 0].numel()).expand_as(maps)
    else:
        wide = average_pool_gradient(gradient, maps)
    return _to_rows(wide, _memory_format(maps))


def _make_contiguous(maps: Tensor) -> Tensor:
    """A copy in a standard memory order where the maps are a view in another one."""
    if maps.is_contiguous() or maps.is_contiguous(memory_format=torch.channels_last):
        return maps
    return maps.contiguous(memory_format=torch.channels_last)


def _memory_format(maps: Tensor) -> torch.memory_format:
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _to_rows(maps: Tensor, order: torch.memory_format | None = None) -> Tensor:
    """[B, C, H, W] -> [B, C·H·W] in the maps' memory order, or in the given one."""
    last = (order or _memory_format(maps)) == torch.channels_last
    return (maps.permute(0, 2, 3, 1) if last else maps).flatten(1)


def _to_maps(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    if _memory_format(like) == torch.channels_last:
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return rows.view(batch, channels, height, width)


def pooled_map(
    feature_map: Tensor, channels: int, grid: tuple[int, int], norm: ModuleNorm
) -> Tensor:
    """[B, C, H, W] -> [B, channels, grid height, grid width] float32: `module_vector` unflattened.

    Args and result are those of `module_vector`.
    """
    if norm == "sample":
        values = feature_map.float()
        # A sum of squares: a vector norm over a strided axis is slow.
        squares = values.square().sum(1, keepdim=True)
        feature_map = values * squares.clamp_min(EPSILON**2).rsqrt()
    pool = _PooledUnits if norm == "batch" else _Pooled
    pooled: Tensor = pool.apply(_make_contiguous(feature_map), grid)
    missing = channels - pooled.shape[1]
    if not missing:
        return pooled
    return F.pad(pooled, (0, 0, 0, 0, missing // 2, missing - missing // 2))


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
    return pooled_map(feature_map, channels, grid, norm).flatten(1)


def multiply_head(head: nn.Linear, values: Tensor) -> Tensor:
    """[B, embedding_dim] of vectors [B, n], or of maps [B, C, h, w] with at most the head's inputs.

    Maps of fewer channels are in the middle of the head's channels, and the others 0: these are
    left out of the product.
    """
    vectors, given = values.flatten(1), values[0].numel()
    if values.dim() == 2 or given == head.in_features:
        return cast(Tensor, head(vectors))
    positions = values[0, 0].numel()
    first = (head.in_features - given) // positions // 2 * positions
    return F.linear(vectors, head.weight[:, first : first + given], head.bias)
