"""Batches with their index, from memory or from any map-style data set.

Both loaders give the same sequence of samples for the same seed and epoch, whatever was drawn
elsewhere in the program: that is what makes a run repeatable and resumable. A training epoch leaves
out the last, shorter batch; each epoch leaves out other samples.
"""

import random
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from cktf.batch import Batch
from cktf.data.augment import crop_and_flip, draw_crops
from cktf.data.images import UNLABELLED, Images, ImageSet
from cktf.data.streamed import Streamed
from cktf.data.views import Views
from cktf.errors import DataError


class Loader(Protocol):
    """Batches of one data set, epoch by epoch."""

    samples: int
    batch_size: int

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int, *, cover: bool = False, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, which with the seed decides order and augmentation.

        The first `start` are left out, and the others are what they are without that.
        With `cover` one more batch takes up the samples that are left out otherwise, filled up to
        its size with some that came before.
        """


def _seed(*entropy: int) -> int:
    # Words of entropy, hashed: neighbouring seeds and epochs must not give related streams.
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, epoch))


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
    """Batches of an `ImageSet` in memory, cropped and flipped if it is for training.

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
        self._labels = data.labels if data.labelled else None
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


class _Pixels(Dataset[tuple[Tensor, int]]):
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
        seed = _seed(*self.draw, position)
        return cast(Streamed, images).augmented(position, seed, self.data.flip), position


class _Indexed(Dataset[tuple[Tensor, int, int]]):
    """A user's data set with each sample's position, checked sample by sample.

    In a process of its own, what a sample draws at random follows from `draw`, seed and epoch, and
    its position: it does not depend on what that process read before, as after a resume.
    """

    def __init__(self, data: Any, labelled: bool, draw: tuple[int, int]) -> None:
        self.data, self.labelled, self.draw = data, labelled, draw

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        if get_worker_info() is not None:
            _seed_all(_seed(*self.draw, position))
        sample = self.data[position]
        pair = isinstance(sample, (tuple, list))
        if self.labelled and not (pair and len(sample) == 2):
            raise DataError(
                f"A data set gives (image, label); sample {position} is a "
                f"{type(sample).__name__}. Wrap it so that it gives pairs."
            )
        image = to_tensor(sample[0] if pair else sample, position)
        label = _to_label(sample[1], position) if self.labelled else UNLABELLED
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


def _to_label(label: Any, position: int) -> int:
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The label of sample {position} is {label!r}; a label is the number of its class, "
            "from 0. Number the classes in the data set."
        ) from error


def to_tensor(image: Any, position: int) -> Tensor:
    """An image as float32 [C, H, W]: bytes and pictures are scaled to [0, 1], floats kept."""
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


class DatasetLoader:
    """Batches of any map-style data set of `(image, label)`, loaded by PyTorch's workers.

    Args:
        data: has `__len__` and `__getitem__`; images as tensors [C, H, W], pictures or arrays.
        batch_size: B.
        train: shuffle and leave out the last short batch.
        augment: crop, scale and flip at random, of an `ImageSet` that is streamed; the same for
            any number of workers.
        workers: processes; 0 loads in this one.
        seed: decides the order and the augmentation.
        labelled: whether labels are read; without, samples may be images alone.
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
        labelled: bool = True,
        views: int = 0,
    ) -> None:
        self.data, self.batch_size, self.train, self.augment = data, batch_size, train, augment
        self.labelled = labelled
        self.workers, self.seed = workers, seed
        self.samples = len(data)
        self.views = views if augment else int(isinstance(data, ImageSet))
        if augment and not (isinstance(data, ImageSet) and isinstance(data.images, Streamed)):
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
            indexed = _Indexed(self.data, self.labelled, (self.seed, number))
            for images, labels, index in self._loader(indexed, order, generator, _collate):
                images = images.contiguous(memory_format=torch.channels_last)
                yield Batch(images, labels if self.labelled else None, index)
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
        kept = self.data.labels if self.data.labelled else None
        if self.augment:
            cast(Streamed, self.data.images).prepare(self.data.flip)
        data = _Pixels(self.data, draw if self.augment else None)
        for pixels, index in self._loader(data, order, generator, default_collate):
            yield Batch(_scaled_by_one(pixels), _at(kept, index), index, view)

    def _loader(
        self,
        data: Dataset,
        order: list[list[int]],
        generator: torch.Generator,
        collate: Callable[[list[Any]], Any],
    ) -> DataLoader:
        return DataLoader(
            data,
            batch_sampler=order,
            num_workers=self.workers,
            generator=generator,
            collate_fn=collate,
        )


def labels_of(data: Any) -> Tensor:
    """All labels of a data set, [N] int64.

    Taken from its `targets` or `labels`, through a `Subset` or `TensorDataset`; where there is
    nothing of the kind, every sample is read once.
    """
    if isinstance(data, Subset) and _states_labels(data.dataset):
        return labels_of(data.dataset)[torch.as_tensor(data.indices)]
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return data.tensors[1].long()
    found = _stated(data)
    if found is not None:
        return found
    return torch.tensor([_to_label(data[i][1], i) for i in range(len(data))])


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


def _states_labels(data: Any) -> bool:
    return isinstance(data, Subset | TensorDataset) or _stated(data) is not None


def _collate(samples: list[tuple[Tensor, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    images, labels, positions = zip(*samples, strict=True)
    for image, position in zip(images, positions, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"Images of one size make a batch: sample {positions[0]} is "
                f"{tuple(images[0].shape)}, sample {position} is {tuple(image.shape)}. Resize or "
                "crop them in the data set's transform."
            )
    return torch.stack(images), torch.tensor(labels), torch.tensor(positions)
