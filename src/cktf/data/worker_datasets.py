"""Data sets that DataLoader's workers read: samples with their positions, collated to batches."""

import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from cktf.data.image_set import NO_LABEL, Images, ImageSet
from cktf.data.samples import label_of_sample, original_position, read_sample, to_tensor
from cktf.data.streamed_images import StreamedImages
from cktf.errors import CktfError, DataError

_RESIZE_ADVICE = "Resize or crop them in the data set's transform."
CONVERT_ADVICE = (
    "Convert all images in the data set: picture.convert('RGB'), or 'L' for gray, of a PIL image."
)


def derive_seed(*entropy: int) -> int:
    """Derive a seed from several numbers, such as a seed and an epoch."""
    # SeedSequence hashes its input, so that neighboring seeds and epochs give unrelated streams.
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


class IndexedImageSet(Dataset[tuple[Tensor, int]]):
    """The images of an `ImageSet` with their positions, as bytes (a quarter of float32's size).

    Args:
        data: the images.
        augment_seed: seed and epoch; with the position they decide the augmentation. None: none.
    """

    def __init__(self, data: ImageSet[Images], augment_seed: tuple[int, int] | None) -> None:
        self.data, self.augment_seed = data, augment_seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        images = self.data.images
        if self.augment_seed is None:
            return images[position], position
        seed = derive_seed(*self.augment_seed, position)
        streamed = cast(StreamedImages, images)
        return streamed.read_random_crop(position, seed, self.data.flip), position


class IndexedDataset(Dataset[tuple[Tensor, int, int]]):
    """A user's data set with the position of each sample, checked sample by sample.

    In a worker process the global generators are seeded for each sample by seed, epoch and
    position, so that its random transforms do not depend on the samples read before, for instance
    after a resume.
    """

    def __init__(self, data: Any, labeled: bool, seed: tuple[int, int]) -> None:
        self.data, self.labeled, self.seed = data, labeled, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        if get_worker_info() is not None:
            seed = derive_seed(*self.seed, position)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        sample = read_sample(self.data, position)
        original = original_position(self.data, position)
        label = label_of_sample(sample, original) if self.labeled else NO_LABEL
        image = to_tensor(sample[0] if isinstance(sample, (tuple, list)) else sample, original)
        if not bool(image.isfinite().all()):
            raise DataError(
                f"The image of sample {original} holds NaN or infinity. Correct or remove the "
                "sample, and check the transform that made it."
            )
        return image, label, position


class BatchDataset(Dataset[Any]):
    """Collated batches of a data set, indexed by the list of their samples' positions.

    In a worker process a user's mistake is returned as the batch, because PyTorch would put the
    worker's traceback into the message of an exception.
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
    """Stack samples to images [B, C, H, W], labels [B] and positions [B]."""
    images, labels, positions = zip(*samples, strict=True)
    for image, position in zip(images, positions, strict=True):
        if image.shape != images[0].shape:
            same_channels = len(image) == len(images[0])
            raise DataError(
                f"The images of a batch have one size: sample {positions[0]} is "
                f"{tuple(images[0].shape)}, sample {position} is {tuple(image.shape)}. "
                f"{_RESIZE_ADVICE if same_channels else CONVERT_ADVICE}"
            )
    return torch.stack(images), _to_tensor(labels), _to_tensor(positions)


def collate_images(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack the images of an `ImageSet` to [B, H, W, C], and their positions to [B]."""
    images, positions = zip(*samples, strict=True)
    # In a worker this stacks in shared memory.
    return default_collate(list(images)), _to_tensor(positions)


def _to_tensor(numbers: tuple[int, ...]) -> Tensor:
    # The user may have chosen another default device.
    return torch.tensor(numbers, device="cpu")
