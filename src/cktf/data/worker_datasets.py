"""What worker processes do: samples with their positions, made into batches."""

import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from cktf.data.image_decoding import GRAY, RGB, convert_to_8bit
from cktf.data.image_set import NO_LABEL, Images, ImageSet
from cktf.data.streamed_images import StreamedImages
from cktf.errors import CktfError, DataError


def derive_seed(*entropy: int) -> int:
    """A seed from numbers of which each decides it."""
    # Words of entropy, hashed: neighboring seeds and epochs must not give related streams.
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


class Pixels(Dataset[tuple[Tensor, int]]):
    """The images of an `ImageSet` with their positions, as bytes, a quarter of what floats take.

    Args:
        data: the images.
        draw: seed and epoch, which with the position decide the augmentation; None for none.
    """

    def __init__(self, data: ImageSet[Images], draw: tuple[int, int] | None) -> None:
        self.data, self.draw = data, draw

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        images = self.data.images
        if self.draw is None:
            return images[position], position
        seed = derive_seed(*self.draw, position)
        return cast(StreamedImages, images).augmented(position, seed, self.data.flip), position


class IndexedDataset(Dataset[tuple[Tensor, int, int]]):
    """A user's data set with each sample's position, checked sample by sample.

    In a process of its own, what a sample draws at random follows from `draw`, seed and epoch, and
    its position: it does not depend on what that process read before, as after a resume.
    """

    def __init__(self, data: Any, labeled: bool, draw: tuple[int, int]) -> None:
        self.data, self.labeled, self.draw = data, labeled, draw

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        if get_worker_info() is not None:
            _seed_all(derive_seed(*self.draw, position))
        sample = self.data[position]
        label = label_of(sample, position) if self.labeled else NO_LABEL
        image = to_tensor(sample[0] if isinstance(sample, (tuple, list)) else sample, position)
        if not bool(image.isfinite().all()):
            raise DataError(
                f"The image of sample {position} holds NaN or infinity. Mend or leave out that "
                "sample, and look at the transform that made it."
            )
        return image, label, position


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def label_of(sample: Any, position: int) -> int:
    """The number of the class of a sample, which is a pair of image and label."""
    if not (isinstance(sample, (tuple, list)) and len(sample) == 2):
        raise DataError(
            f"A data set gives (image, label); sample {position} is a {type(sample).__name__}. "
            "Wrap it so that it gives pairs."
        )
    return to_label(sample[1], position)


def to_label(label: Any, position: int) -> int:
    """The number of a sample's class."""
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The label of sample {position} is {label!r}; a label is the number of its class, "
            "from 0. Number the classes in the data set."
        ) from error


def to_tensor(image: Any, position: int) -> Tensor:
    """An image as float32 [C, H, W]: bytes and pictures are scaled to [0, 1], floats kept."""
    if isinstance(image, Image.Image):
        image = _eight_bits(image, position)
    if not isinstance(image, Tensor):
        try:
            array = np.asarray(image)
            array = array[:, :, None] if array.ndim == 2 else array
            image = torch.from_numpy(array.transpose(2, 0, 1).copy())
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"The image of sample {position} is a {type(image).__name__}, not a tensor "
                "[C, H, W], a picture or an array [H, W, C]. Convert it in the data set."
            ) from error
    if image.dim() != 3:
        raise DataError(
            f"The image of sample {position} has shape {tuple(image.shape)}; an image is [C, H, W]."
        )
    values: Tensor = image.float()
    if image.dtype == torch.uint8:
        return values / 255
    if not image.is_floating_point():
        raise DataError(
            f"The image of sample {position} is of {image.dtype}: bytes (uint8) are scaled to "
            "[0, 1], floats are taken as they are. Convert it in the data set."
        )
    return values


def _eight_bits(picture: Image.Image, position: int) -> Image.Image:
    """A picture in RGB, or gray where it has no colors; one of floats is taken as they are."""
    if picture.mode == "F":
        return picture
    try:
        channels = GRAY if Image.getmodebase(picture.mode) == "L" else RGB
        return convert_to_8bit(picture, channels)
    except ValueError as error:
        raise DataError(
            f"The image of sample {position} cannot be taken ({error}). Convert it in the data set."
        ) from error


class BatchDataset(Dataset[Any]):
    """BatchDataset of a data set by the positions of their samples.

    In a process of its own, a mistake that the user can mend becomes the batch: PyTorch would put
    that process's traceback into its message.
    """

    def __init__(self, data: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.data, self.collate = data, collate

    def __getitem__(self, positions: list[int]) -> Any:
        try:
            return self.collate([self.data[position] for position in positions])
        except CktfError as error:
            if get_worker_info() is None:
                raise
            return DataError(str(error))


def collate_samples(samples: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, C, H, W], labels and positions of samples as a batch."""
    images, labels, positions = zip(*samples, strict=True)
    for image, position in zip(images, positions, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"Images of one size make a batch: sample {positions[0]} is "
                f"{tuple(images[0].shape)}, sample {position} is {tuple(image.shape)}. Resize or "
                "crop them in the data set's transform."
            )
    return torch.stack(images), torch.tensor(labels), torch.tensor(positions)
