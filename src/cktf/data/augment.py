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
    return _crop_at(images, *draw_crops(len(images), generator, padding), padding, flip)


def draw_crops(batch: int, generator: torch.Generator, padding: int) -> tuple[Tensor, Tensor]:
    """Draw offsets [2, B, 1] from 0 to twice the padding, and which images to mirror, [B, 1]."""
    offset = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator, device="cpu")
    mirrored = torch.randint(2, (batch, 1), generator=generator, device="cpu")
    return offset, mirrored.bool()


def _crop_at(images: Tensor, offset: Tensor, mirrored: Tensor, padding: int, flip: bool) -> Tensor:
    batch, height, width, _ = images.shape
    rows = torch.arange(height, device="cpu") + offset[0]
    columns = torch.arange(width, device="cpu") + offset[1]
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(batch, device="cpu").view(-1, 1, 1)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    pixel_index = (sample, rows.unsqueeze(2), columns.unsqueeze(1))
    return padded[tuple(index.to(images.device) for index in pixel_index)]


class FixedViews:
    """A finite set of crops and flips of every image, the same in every run.

    The position of an image and the number of the view decide its crop.

    Args:
        samples: N.
        padding: pixels added on every side.
        flip: whether images are mirrored.
    """

    def __init__(self, samples: int, padding: int, flip: bool) -> None:
        self.samples, self.padding, self.flip = samples, padding, flip
        self._drawn_view: tuple[int, Tensor, Tensor] | None = None

    def apply(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        """Crop images [B, H, W, C], whose positions are `index` [B], as view `view` has them."""
        if self._drawn_view is None or self._drawn_view[0] != view:
            generator = torch.Generator("cpu").manual_seed(view)
            self._drawn_view = (view, *draw_crops(self.samples, generator, self.padding))
        _, offset, mirrored = self._drawn_view
        return _crop_at(images, offset[:, index], mirrored[index], self.padding, self.flip)
