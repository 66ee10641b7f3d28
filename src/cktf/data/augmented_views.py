"""A finite set of augmented views of every image, the same in every run."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from cktf.data.augment import crop_at, draw_crops
from cktf.data.image_set import Images, ImageSet
from cktf.data.streamed_images import StreamedImages


class Views:
    """How each image in memory is crop_at and mirrored in each view: by its position and the view.

    Args:
        samples: N.
        padding: pixels added on every side.
        flip: whether images are mirrored.
    """

    def __init__(self, samples: int, padding: int, flip: bool) -> None:
        self.samples, self.padding, self.flip = samples, padding, flip
        self._drawn: tuple[int, Tensor, Tensor] | None = None

    def of(self, pixels: Tensor, index: Tensor, view: int) -> Tensor:
        """Images [B, H, W, C] at positions [B] as they are in a view."""
        if self._drawn is None or self._drawn[0] != view:
            generator = torch.Generator().manual_seed(view)
            self._drawn = (view, *draw_crops(self.samples, generator, self.padding))
        _, offset, mirrored = self._drawn
        return crop_at(pixels, offset[:, index], mirrored[index], self.padding, self.flip)


def hash_images(data: ImageSet[Images]) -> str:
    """SHA-256 by which images are told from others: their bytes, or their files' names and ends."""
    digest = hashlib.sha256(f"{data.name} {tuple(data.images.shape)}".encode())
    if isinstance(data.images, StreamedImages):
        pictures = data.images.pictures
        for position in range(len(pictures)):
            digest.update(pictures.name(position).encode())
            if pictures.size is None:
                digest.update(pictures.tail(position))
            else:
                # They are stored as pixels, which have no end that tells.
                with pictures.open(position) as image:
                    digest.update(image.tobytes())
    else:
        digest.update(np.ascontiguousarray(data.images.numpy()).data)  # type: ignore[attr-defined]
    return digest.hexdigest()
