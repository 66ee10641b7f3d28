"""Crop and flip a whole batch at once.

The usual augmentation of 32-pixel images (pad by 4, crop, mirror) is one gather for the batch. It
takes microseconds per image, so loading never holds back training.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(
    images: Tensor, generator: torch.Generator, padding: int = 4, flip: bool = True
) -> Tensor:
    """Pad every image with zeros, crop it to its size at random, mirror it half the time.

    Args:
        images: [B, H, W, C] of any type.
        generator: draws the offsets; on the CPU.
        padding: pixels added on every side, and the largest offset.
        flip: mirror left and right with probability one half.

    Returns:
        [B, H, W, C] of the same type.
    """
    crops = draw_crops(len(images), generator, padding).to(images.device)
    return crop_at(images, crops, padding, flip)


def draw_crops(batch: int, generator: torch.Generator, padding: int) -> Tensor:
    """Draw crops [3, B, 1]: rows and columns from 0 to twice the padding, and 1 to mirror or 0."""
    offset = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator, device="cpu")
    mirrored = torch.randint(2, (1, batch, 1), generator=generator, device="cpu")
    return torch.cat([offset, mirrored])


def crop_at(images: Tensor, crops: Tensor, padding: int, flip: bool) -> Tensor:
    """Crop images [B, H, W, C] as `draw_crops` says, on the device of both; see `crop_and_flip`."""
    (batch, height, width, _), device = images.shape, images.device
    first_row, first_column, mirrored = crops
    rows = torch.arange(height, device=device) + first_row
    columns = torch.arange(width, device=device) + first_column
    if flip:
        columns = torch.where(mirrored.bool(), columns.flip(1), columns)
    sample = torch.arange(batch, device=device).view(-1, 1, 1)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[sample, rows.unsqueeze(2), columns.unsqueeze(1)]


class FixedViews:
    """A finite set of crops and flips of every image, the same in every run.

    The position of an image and the number of the view decide its crop.

    Args:
        samples: N.
        padding: pixels added on every side.
    """

    def __init__(self, samples: int, padding: int) -> None:
        self.samples, self.padding = samples, padding
        self._drawn_view: tuple[int, Tensor] | None = None

    def crops(self, index: Tensor, view: int) -> Tensor:
        """Crops [3, B, 1] of the images at positions `index` [B] in view `view`."""
        if self._drawn_view is None or self._drawn_view[0] != view:
            generator = torch.Generator("cpu").manual_seed(view)
            self._drawn_view = view, draw_crops(self.samples, generator, self.padding)
        return self._drawn_view[1][:, index]
