"""Images that are read when they are asked for, because memory does not hold them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from cktf.data.image_decoding import describe_error, resize_and_center_crop, to_uint8_tensor
from cktf.data.stored_images import StoredImages
from cktf.errors import DataError

# How many times larger than needed a JPEG is decoded: the smallest crop that is drawn at random is
# about a quarter of a side, and a reduction by two is left to a proper filter.
_FOR_CROPS, _FOR_WHOLE = 4, 2


class StreamedImages:
    """Square images [N, S, S, C] from pictures of any size.

    Args:
        pictures: where they come from.
        size: S, pixels of a side.
        channels: C, 3 or 1.
    """

    def __init__(self, pictures: StoredImages, size: int, channels: int) -> None:
        self.pictures, self.size, self.channels = pictures, size, channels

    @property
    def shape(self) -> tuple[int, ...]:
        """N, S, S, C."""
        return len(self.pictures), self.size, self.size, self.channels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: int) -> Tensor:
        """[S, S, C] uint8: the shorter side scaled to S, the center crop_at.

        Raises:
            DataError: an image that cannot be decoded.
        """
        return to_uint8_tensor(
            resize_and_center_crop(self._decoded(position, _FOR_WHOLE), self.size)
        )

    def augmented(self, position: int, seed: int, flip: bool = True) -> Tensor:
        """[S, S, C] uint8: a part of the image of random place, area and aspect, scaled to S.

        The part has 8 to 100 % of the area, and is mirrored half the time.

        Args:
            position: of the image.
            seed: decides what is drawn; nothing else does, and nothing else is touched.
            flip: mirror left and right with probability one half.
        """
        image = self._decoded(position, _FOR_CROPS)
        with _seeded(seed):
            return to_uint8_tensor(_transform(self.size, flip)(image))

    def prepare(self, flip: bool = True) -> None:
        """Load what `augmented` uses: a second that each forked worker would take otherwise."""
        _transform(self.size, flip)

    def take(self, positions: Sequence[int]) -> "StreamedImages":
        """The images at some positions, in that order."""
        return StreamedImages(self.pictures.take(positions), self.size, self.channels)

    def _decoded(self, position: int, times: int) -> Image.Image:
        try:
            return self.pictures.decoded(position, self.channels, times * self.size)
        except Exception as error:  # decoders let through what they meet
            raise DataError(
                f"{self.pictures.name(position)} cannot be decoded ({describe_error(error)}), "
                "though its header can be read. Mend it or take it out of the data set."
            ) from error


@cache
def _transform(size: int, flip: bool) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import v2  # a second to import

    crop = v2.RandomResizedCrop(size)
    made: Callable[[Image.Image], Image.Image] = (
        v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop
    )
    return made


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU's generator begins at `seed`, and afterwards is as it was."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
