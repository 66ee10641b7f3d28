"""BatchDataset with their index, from memory or from any map-style data set.

Both loaders give the same sequence of samples for the same seed and epoch, whatever was drawn
elsewhere in the program: that is what makes a run repeatable and resumable. A training epoch leaves
out the last, shorter batch; each epoch leaves out other samples.
"""

from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
)

from cktf.batch import Batch
from cktf.data.augment import crop_and_flip, draw_crops
from cktf.data.augmented_views import Views
from cktf.data.image_set import ImageSet
from cktf.data.streamed_images import StreamedImages
from cktf.data.worker_datasets import (
    BatchDataset,
    IndexedDataset,
    Pixels,
    collate_samples,
    derive_seed,
    label_of,
)
from cktf.errors import DataError


class Loader(Protocol):
    """BatchDataset of one data set, epoch by epoch."""

    samples: int
    batch_size: int

    def __len__(self) -> int:
        """BatchDataset in an epoch."""

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, which with the seed decides order and augmentation.

        The first `start` are left out, and the others are what they are without that.
        With `cover` one more batch takes up the samples that are left out otherwise, filled up to
        its size with some that came before.
        """


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, epoch))


_PADDING = 4


def _batches(samples: int, batch_size: int, train: bool) -> int:
    return samples // batch_size if train else -(-samples // batch_size)


def _order(
    loader: "MemoryLoader | DatasetLoader", generator: torch.Generator, cover: bool
) -> list[Tensor]:
    """Positions [B] of each batch of an epoch."""
    size, samples = loader.batch_size, loader.samples
    order = torch.arange(samples)
    if loader.train:
        order = torch.randperm(samples, generator=generator)
    batches = list(torch.split(order, size))[: len(loader)]
    if cover and len(batches) * size < samples:
        batches.append(order[max(0, samples - size) :])
    return batches


def _scaled(pixels: Tensor) -> Tensor:
    """Bytes [B, H, W, C] as floats [B, C, H, W] in [0, 1]."""
    # A permuted view of [B, H, W, C] is channels-last without a copy.
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def _scaled_by_one(pixels: Tensor) -> Tensor:
    """The same by one thread: waiting threads would slow the workers that make the next batch."""
    values = np.divide(pixels.numpy(), np.float32(255), dtype=np.float32)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


class MemoryLoader:
    """BatchDataset of an `ImageSet` in memory, crop_at and flipped if it is for training.

    Args:
        data: the images.
        batch_size: B.
        train: shuffle and leave out the last short batch; otherwise in order, all of them.
        augment: crop and flip each batch, padded by an eighth of a side and at least by 4.
        seed: decides the order and the augmentation.
        views: of each image so many augmentations, the same for every seed, an epoch each in turn;
            0 for new ones in every epoch.
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
        self._padding = max(_PADDING, min(data.images.shape[1:3]) // 8)
        self.views = views if augment else 1
        self._views = Views(len(data), self._padding, data.flip)

    def __len__(self) -> int:
        return _batches(self.samples, self.batch_size, self.train)

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from `start` on; with `cover` none is left out."""
        generator = _generator(self.seed, number)
        order = _order(self, generator, cover)
        if self.views:
            yield from self._in_view(order[start:], number % self.views)
            return
        for index in order[:start]:
            draw_crops(len(index), generator, self._padding)
        for index in order[start:]:
            pixels = self.data.images[index]
            pixels = crop_and_flip(pixels, generator, self._padding, self.data.flip)
            yield Batch(_scaled(pixels), _at(self._labels, index), index)

    def view(self, number: int) -> Iterator[Batch]:
        """All images in order, in one of a finite set of views."""
        yield from self._in_view(
            list(torch.split(torch.arange(self.samples), self.batch_size)), number
        )

    def _in_view(self, order: list[Tensor], view: int) -> Iterator[Batch]:
        for index in order:
            pixels = self.data.images[index]
            if self.augment:
                pixels = self._views.of(pixels, index, view)
            yield Batch(_scaled(pixels), _at(self._labels, index), index, view)


def _at(labels: Tensor | None, index: Tensor) -> Tensor | None:
    return None if labels is None else labels[index]


class DatasetLoader:
    """BatchDataset of any map-style data set of `(image, label)`, loaded by PyTorch's workers.

    Args:
        data: has `__len__` and `__getitem__`; images as tensors [C, H, W], pictures or arrays.
        batch_size: B.
        train: shuffle and leave out the last short batch.
        augment: crop, scale and flip at random, of an `ImageSet` that is streamed; the same for
            any number of workers.
        workers: processes; 0 loads in this one.
        seed: decides the order and the augmentation.
        labeled: whether labels are read; without, samples may be images alone.
        views: of each image so many augmentations, as of `MemoryLoader`.

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
        self.views = views if augment else int(isinstance(data, ImageSet))
        if augment and not (isinstance(data, ImageSet) and isinstance(data.images, StreamedImages)):
            raise DataError(
                "DatasetLoader augments images that are streamed. Use MemoryLoader for an ImageSet "
                "in memory; let a data set of your own augment its samples itself."
            )

    def __len__(self) -> int:
        return _batches(self.samples, self.batch_size, self.train)

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from `start` on; with `cover` none is left out."""
        generator = _generator(self.seed, number)
        order = [b.tolist() for b in _order(self, generator, cover)[start:]]
        if not isinstance(self.data, ImageSet):
            indexed = IndexedDataset(self.data, self.labeled, (self.seed, number))
            for images, labels, index in self._loaded(indexed, order, generator, collate_samples):
                images = images.contiguous(memory_format=torch.channels_last)
                yield Batch(images, labels if self.labeled else None, index)
            return
        if self.views:
            yield from self._pixels(order, generator, (0, number % self.views), number % self.views)
        else:
            yield from self._pixels(order, generator, (self.seed, number), None)

    def view(self, number: int) -> Iterator[Batch]:
        """All images in order, in one of a finite set of views."""
        order = torch.split(torch.arange(self.samples), self.batch_size)
        batches = [batch.tolist() for batch in order]
        yield from self._pixels(batches, _generator(0, number), (0, number), number)

    def _pixels(
        self,
        order: list[list[int]],
        generator: torch.Generator,
        draw: tuple[int, int],
        view: int | None,
    ) -> Iterator[Batch]:
        assert isinstance(self.data, ImageSet)
        kept = self.data.labels if self.data.labeled else None
        if self.augment:
            cast(StreamedImages, self.data.images).prepare(self.data.flip)
        data = Pixels(self.data, draw if self.augment else None)
        for pixels, index in self._loaded(data, order, generator, default_collate):
            yield Batch(_scaled_by_one(pixels), _at(kept, index), index, view)

    def _loaded(
        self,
        data: Dataset,
        order: list[list[int]],
        generator: torch.Generator,
        collate: Callable[[list[Any]], Any],
    ) -> Iterator[Any]:
        loader = DataLoader(
            BatchDataset(data, collate),
            # Positions of a batch are one sample to PyTorch.
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            generator=generator,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def get_labels(data: Any) -> Tensor:
    """All labels of a data set, [N] int64.

    Taken from its `targets` or `labels`, through a `Subset`, `ConcatDataset` or `TensorDataset`;
    where there is nothing of the kind, every sample is read once.

    Raises:
        DataError: a sample that is no pair of image and label, or a label that is no number.
    """
    if isinstance(data, Subset) and has_stored_labels(data.dataset):
        return get_labels(data.dataset)[torch.as_tensor(data.indices)]
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return data.tensors[1].long()
    found = _stated(data)
    if found is not None:
        return found
    if isinstance(data, ConcatDataset) and has_stored_labels(data):
        return torch.cat([get_labels(part) for part in data.datasets])
    return torch.tensor([label_of(data[i], i) for i in range(len(data))])


def _stated(data: Any) -> Tensor | None:
    """The labels that a data set keeps in one place; None if it does not."""
    # A target_transform of torchvision changes what samples hold, not what targets hold.
    if getattr(data, "target_transform", None) is not None:
        return None
    for name in ("labels", "targets"):
        found = getattr(data, name, None)
        if found is None or isinstance(found, str) or len(found) != len(data):
            continue
        with suppress(ValueError, TypeError, RuntimeError):
            values = torch.as_tensor(found)
            if values.dim() == 1 and not values.is_floating_point():
                return values.long()
    return None


def has_stored_labels(data: Any) -> bool:
    """Whether a data set says its labels in one place, so that no sample is read for them."""
    if isinstance(data, ConcatDataset) and all(map(has_stored_labels, data.datasets)):
        return True
    return isinstance(data, Subset | TensorDataset) or _stated(data) is not None
