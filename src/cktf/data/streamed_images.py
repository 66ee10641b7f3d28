"""Images that are decoded when they are asked for, because they do not fit into memory."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from cktf.data.image_decoding import describe_error, resize_and_center_crop, to_uint8_tensor
from cktf.data.stored_images import StoredImages, StoredSubset
from cktf.errors import DataError

# A JPEG is decoded at least this many times larger than needed: the smallest random crop is about a
# quarter of a side, and a reduction by two is left to the resampling filter.
_RANDOM_CROP_SCALE, _CENTER_CROP_SCALE = 4, 2


class StreamedImages:
    """Square images [N, S, S, C] made from stored images of any size.

    Args:
        stored: the images on disk.
        size: S, pixels of a side.
        channels: C, 3 or 1.
    """

    def __init__(self, stored: StoredImages, size: int, channels: int) -> None:
        self.stored, self.size, self.channels = stored, size, channels

    @property
    def shape(self) -> tuple[int, ...]:
        """N, S, S, C."""
        return len(self.stored), self.size, self.size, self.channels

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, position: int) -> Tensor:
        """Read one image, [S, S, C] uint8: its shorter side scaled to S, its center cropped.

        Raises:
            DataError: an image that cannot be decoded.
        """
        image = self._load(position, _CENTER_CROP_SCALE)
        return to_uint8_tensor(resize_and_center_crop(image, self.size))

    def read_random_crop(self, position: int, seed: int, flip: bool = True) -> Tensor:
        """Read a random crop of one image, scaled to [S, S, C] uint8.

        The crop has 8 to 100 % of the image's area.

        Args:
            position: of the image.
            seed: alone decides the crop and the flip; the global generator is left unchanged.
            flip: mirror left and right with probability one half.
        """
        image = self._load(position, _RANDOM_CROP_SCALE)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return to_uint8_tensor(_transform(self.size, flip)(image))

    def load_transform(self, flip: bool = True) -> None:
        """Import the augmentation before workers fork; each would take a second to import it."""
        _transform(self.size, flip)

    def subset(self, positions: Sequence[int]) -> "StreamedImages":
        """Select the images at some positions, in that order."""
        return StreamedImages(StoredSubset(self.stored, positions), self.size, self.channels)

    def _load(self, position: int, scale: int) -> Image.Image:
        try:
            return self.stored.load_image(position, self.channels, scale * self.size)
        except Exception as error:  # Pillow's decoders raise errors of many types
            raise DataError(
                f"{self.stored.image_name(position)} cannot be decoded ({describe_error(error)}), "
                "though its header can be read. Repair the file or remove it from the data set."
            ) from error


@cache
def _transform(size: int, flip: bool) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import v2  # the import takes a second

    crop = v2.RandomResizedCrop(size)
    transform: Callable[[Image.Image], Image.Image] = (
        v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop
    )
    return transform
