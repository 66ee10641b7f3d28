"""Batches with the positions of their samples, from memory or from any map-style data set.

Seed and epoch alone decide the order and the augmentation of an epoch, so that a run can be
repeated and resumed. A training epoch drops the last, incomplete batch; each epoch drops other
samples.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cktf.batch import Batch
from cktf.data.augment import FixedViews, crop_and_flip, draw_crops
from cktf.data.image_set import ImageSet
from cktf.data.streamed_images import StreamedImages
from cktf.data.worker_datasets import (
    CONVERT_ADVICE,
    BatchDataset,
    IndexedDataset,
    IndexedImageSet,
    collate_images,
    collate_samples,
    derive_seed,
)
from cktf.errors import CktfError, DataError

_MIN_PADDING = 4


class Loader(Protocol):
    """Batches of one data set, epoch by epoch."""

    samples: int
    batch_size: int

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, which with the seed decides order and augmentation.

        Args:
            number: of the epoch.
            cover: add a batch with the samples that a training epoch drops, filled up to the batch
                size with some that came before.
            start: skip this many batches; the others are the same as without skipping.
        """


def _epoch_generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(derive_seed(seed, epoch))


def _count_batches(samples: int, batch_size: int, train: bool) -> int:
    return samples // batch_size if train else -(-samples // batch_size)


def _draw_order(
    loader: "MemoryLoader | DatasetLoader", generator: torch.Generator, cover: bool
) -> list[Tensor]:
    """Positions [B] of each batch of an epoch."""
    size, samples = loader.batch_size, loader.samples
    order = torch.arange(samples, device="cpu")
    if loader.train:
        order = torch.randperm(samples, generator=generator, device="cpu")
    batches = list(torch.split(order, size))[: len(loader)]
    if cover and len(batches) * size < samples:
        batches.append(order[max(0, samples - size) :])
    return batches


def _to_unit_range(pixels: Tensor) -> Tensor:
    """Bytes [B, H, W, C] as floats [B, C, H, W] in [0, 1]."""
    # A permuted view of [B, H, W, C] is channels-last without a copy.
    return pixels.permute(0, 3, 1, 2).float().div_(255)


class MemoryLoader:
    """Batches of an `ImageSet` in memory.

    Args:
        data: the images.
        batch_size: B.
        train: shuffle and drop the last incomplete batch; otherwise in order and complete.
        augment: crop and flip each batch, padded by an eighth of a side and at least by 4.
        seed: decides the order and the augmentation.
        views: number of fixed augmentations of each image, the same for every seed; epochs use
            them in turn. 0 draws new ones in every epoch.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        *,
        train: bool,
        augment: bool = False,
        seed: int = 0,
        views: int = 0,
    ) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.train, self.augment = train, augment
        self.samples = len(data)
        self._labels = data.labels if data.labeled else None
        self._padding = max(_MIN_PADDING, min(data.images.shape[1:3]) // 8)
        self.views = views if augment else 1
        self._fixed_views = FixedViews(len(data), self._padding, data.flip)

    def __len__(self) -> int:
        return _count_batches(self.samples, self.batch_size, self.train)

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`; see `Loader.epoch`."""
        generator = _epoch_generator(self.seed, number)
        order = _draw_order(self, generator, cover)
        if self.views:
            yield from self._batches_of_view(order[start:], number % self.views)
            return
        for index in order[:start]:
            draw_crops(len(index), generator, self._padding)
        for index in order[start:]:
            pixels = self.data.images[index]
            pixels = crop_and_flip(pixels, generator, self._padding, self.data.flip)
            yield Batch(_to_unit_range(pixels), _select_labels(self._labels, index), index)

    def view(self, number: int) -> Iterator[Batch]:
        """Yield all images in order, in fixed augmentation `number`."""
        order = torch.split(torch.arange(self.samples, device="cpu"), self.batch_size)
        yield from self._batches_of_view(list(order), number)

    def _batches_of_view(self, order: list[Tensor], view: int) -> Iterator[Batch]:
        for index in order:
            pixels = self.data.images[index]
            if self.augment:
                pixels = self._fixed_views.apply(pixels, index, view)
            yield Batch(_to_unit_range(pixels), _select_labels(self._labels, index), index, view)


def _select_labels(labels: Tensor | None, index: Tensor) -> Tensor | None:
    return None if labels is None else labels[index]


class DatasetLoader:
    """Batches of any map-style data set of `(image, label)`, loaded by PyTorch's workers.

    Args:
        data: has `__len__` and `__getitem__`; images are tensors [C, H, W], PIL images or arrays.
        batch_size: B.
        train: shuffle and drop the last incomplete batch.
        augment: crop, scale and flip at random; only for an `ImageSet` that is streamed. The
            number of workers does not change the result.
        workers: processes; 0 loads in the main process.
        seed: decides the order and the augmentation.
        labeled: whether labels are read; without, samples may be images alone.
        views: number of fixed augmentations of each image, as in `MemoryLoader`.

    Raises:
        DataError: augmentation of a data set that is not streamed.
    """

    def __init__(
        self,
        data: Sized,
        batch_size: int,
        *,
        train: bool,
        augment: bool = False,
        workers: int = 0,
        seed: int = 0,
        labeled: bool = True,
        views: int = 0,
    ) -> None:
        self.data, self.batch_size, self.train, self.augment = data, batch_size, train, augment
        self.labeled = labeled
        self.workers, self.seed = workers, seed
        self.samples = len(data)
        self._channels: int | None = None
        self.views = views if augment else int(isinstance(data, ImageSet))
        if augment and not (isinstance(data, ImageSet) and isinstance(data.images, StreamedImages)):
            raise DataError(
                "DatasetLoader augments images that are streamed. Use MemoryLoader for an ImageSet "
                "in memory; let a data set of your own augment its samples itself."
            )

    def __len__(self) -> int:
        return _count_batches(self.samples, self.batch_size, self.train)

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`; see `Loader.epoch`."""
        generator = _epoch_generator(self.seed, number)
        order = [b.tolist() for b in _draw_order(self, generator, cover)[start:]]
        if not isinstance(self.data, ImageSet):
            indexed = IndexedDataset(self.data, self.labeled, (self.seed, number))
            for images, labels, index in self._load(indexed, order, generator, collate_samples):
                self._check_channels(images)
                images = images.contiguous(memory_format=torch.channels_last)
                yield Batch(images, labels if self.labeled else None, index)
            return
        if self.views:
            view = number % self.views
            yield from self._load_image_set(order, generator, (0, view), view)
        else:
            yield from self._load_image_set(order, generator, (self.seed, number), None)

    def _check_channels(self, images: Tensor) -> None:
        """Raise DataError for a batch [B, C, H, W] with other channels than those before it."""
        channels = images.shape[1]
        self._channels = self._channels or channels
        if channels != self._channels:
            raise DataError(
                f"All images have the same channels; those of a batch have {self._channels}, and "
                f"of another {channels}. {CONVERT_ADVICE}"
            )

    def view(self, number: int) -> Iterator[Batch]:
        """Yield all images in order, in fixed augmentation `number`."""
        positions = torch.arange(self.samples, device="cpu")
        order = [batch.tolist() for batch in torch.split(positions, self.batch_size)]
        yield from self._load_image_set(order, _epoch_generator(0, number), (0, number), number)

    def _load_image_set(
        self,
        order: list[list[int]],
        generator: torch.Generator,
        augment_seed: tuple[int, int],
        view: int | None,
    ) -> Iterator[Batch]:
        assert isinstance(self.data, ImageSet)
        labels = self.data.labels if self.data.labeled else None
        if self.augment:
            cast(StreamedImages, self.data.images).load_transform(self.data.flip)
        data = IndexedImageSet(self.data, augment_seed if self.augment else None)
        for pixels, index in self._load(data, order, generator, collate_images):
            # As `_to_unit_range` in one thread: PyTorch's idle threads spin and would slow the
            # workers that load the next batch.
            values = np.divide(pixels.numpy(), np.float32(255), dtype=np.float32)
            images = torch.from_numpy(values).permute(0, 3, 1, 2)
            yield Batch(images, _select_labels(labels, index), index, view)

    def _load(
        self,
        data: Dataset,
        order: list[list[int]],
        generator: torch.Generator,
        collate: Callable[[list[Any]], Any],
    ) -> Iterator[Any]:
        loader = DataLoader(
            BatchDataset(data, collate),
            # Without automatic batching; the positions of a batch are one sample.
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            generator=generator,
        )
        try:
            with torch.device("cpu"):  # where PyTorch draws the seed of the workers
                batches = iter(loader)
            for batch in batches:
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        except CktfError:
            raise
        except Exception as error:  # PyTorch has no type for a process that failed
            if not self.workers:
                raise
            raise explain_lost_worker(error) from error


def explain_lost_worker(error: Exception) -> DataError:
    """The DataError for an error of PyTorch about worker processes."""
    # The lines before the last are the traceback of the process.
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
    return DataError(
        f"A process that loads images could not start, or ended early ({reason}). The system may "
        "have stopped it for want of memory or of shared memory (/dev/shm). Use fewer processes, "
        "by data.workers, or none: data.workers=0."
    )
