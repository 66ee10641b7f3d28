"""Crop and flip a whole batch at once.

The usual augmentation of 32-pixel images, pad by 4, crop, mirror, written as one gather for the
batch: per image it costs microseconds, so that feeding never holds back training.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(
    images: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = True
) -> Tensor:
    """Every image padded with zeros, crop_at to its size at random, and mirrored half the time.

    Args:
        images: [B, H, W, C] of any type.
        generator: draws the offsets; of the CPU.
        padding: pixels added on every side, and the largest offset.
        flip: mirror left and right with probability one half.

    Returns:
        [B, H, W, C], as given.
    """
    return crop_at(images, *draw_crops(len(images), generator, padding), padding, flip)


def crop_at(images: Tensor, offset: Tensor, mirrored: Tensor, padding: int, flip: bool) -> Tensor:
    """Images [B, H, W, C] padded, crop_at at [2, B, 1] offsets, and some mirrored: [B, 1] bool."""
    batch, height, width, _ = images.shape
    rows = torch.arange(height) + offset[0]
    columns = torch.arange(width) + offset[1]
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(batch).view(-1, 1, 1)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    place = (sample, rows.unsqueeze(2), columns.unsqueeze(1))
    return padded[tuple(p.to(images.device) for p in place)]


def draw_crops(batch: int, generator: torch.Generator, padding: int) -> tuple[Tensor, Tensor]:
    """Where images are crop_at, [2, B, 1] from 0 to twice the padding, and which are mirrored."""
    offset = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator)
    return offset, torch.randint(2, (batch, 1), generator=generator).bool()
