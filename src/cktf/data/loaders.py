"""Batches with the positions of their samples, from memory or from any map-style data set.

Seed and epoch alone decide the order and the augmentation of an epoch, so that a run can be
repeated and resumed. A training epoch drops the last, incomplete batch; each epoch drops other
samples.

To a GPU images travel as bytes and become floats there, with the same values as on the CPU. A set
in memory that fits is copied to the GPU once, and is cropped there. Nothing waits for the GPU.
"""

from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cktf.batch import Batch, tensor_to_device
from cktf.data.augment import FixedViews, crop_at, draw_crops
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

CPU = torch.device("cpu")
_MIN_PADDING = 4
# A set of images may take up to this share of a GPU's free memory.
_GPU_SHARE = 1 / 4
# On a GPU as many batches as have at most so many bytes are gathered and cropped by one call.
_BYTES_AT_ONCE = 1 << 23
# Tell the loaders of this process apart; a batch that held its loader would keep all images.
_identities = count()


class Loader(Protocol):
    """Batches of one data set, epoch by epoch."""

    samples: int
    batch_size: int

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(
        self, number: int, *, cover: bool = False, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, which with the seed decides order and augmentation.

        Args:
            number: of the epoch.
            cover: add a batch with the samples that a training epoch drops, filled up to the batch
                size with some that came before.
            start: skip this many batches; the others are the same as without skipping.
            device: where the batches are wanted; it does not change their values.
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


def _finish_batches(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy batches to a device; there bytes [B, H, W, C] become floats [B, C, H, W] in [0, 1]."""
    # A GPU would multiply by 1 / 255, which rounds otherwise, if this were a Python number.
    largest = torch.full((), 255.0, dtype=torch.float32, device=device)
    for batch in batches:
        if device.type == "cuda" and batch.images.device.type == "cpu":
            batch = _copy_on_stream(batch, device, _copy_stream(device))
        else:
            batch = batch.to(device)
        if batch.images.dtype == torch.uint8:
            # A permuted view of [B, H, W, C] is channels-last without a copy.
            images = batch.images.permute(0, 3, 1, 2).float().div_(largest)
        else:
            images = batch.images.contiguous(memory_format=torch.channels_last)
        yield replace(batch, images=images)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all copies to a GPU: PyTorch keeps freed memory for each stream by itself."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _copy_on_stream(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    """Copy a batch to a GPU while the steps that are queued there are computed."""
    consumer = torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        batch = batch.to(device)
    consumer.wait_stream(stream)
    for tensor in (batch.images, batch.labels, batch.index):
        if tensor is not None:
            # Its memory belongs to `stream`, which may reuse it only after the consumer's work.
            tensor.record_stream(consumer)
    return batch


def _fits_on_gpu(images: Tensor, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= _GPU_SHARE * free


def _count_at_once(batch: int, images: Tensor) -> int:
    """How many batches of images [N, H, W, C] are gathered by one call: one on the CPU."""
    if images.device.type == "cpu":
        return 1
    return max(1, _BYTES_AT_ONCE // (batch * images[0].nbytes))


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
        self.samples, self._identity = len(data), next(_identities)
        self._labels = data.labels if data.labeled else None
        self._padding = max(_MIN_PADDING, min(data.images.shape[1:3]) // 8)
        self.views = views if augment else 1
        self._fixed_views = FixedViews(len(data), self._padding)
        self._copies: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    def __len__(self) -> int:
        return _count_batches(self.samples, self.batch_size, self.train)

    def epoch(
        self, number: int, *, cover: bool = False, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """Yield the batches of epoch `number`; see `Loader.epoch`."""
        generator = _epoch_generator(self.seed, number)
        order = _draw_order(self, generator, cover)
        view = number % self.views if self.views else None
        if view is None:
            for index in order[:start]:
                draw_crops(len(index), generator, self._padding)
        batches = self._select_batches(order[start:], generator, view, device)
        for step, batch in enumerate(_finish_batches(batches, device), start):
            yield replace(batch, source=(self._identity, number, step))

    def view(self, number: int, *, device: torch.device = CPU) -> Iterator[Batch]:
        """Yield all images in order, in fixed augmentation `number`."""
        order = list(torch.split(torch.arange(self.samples, device="cpu"), self.batch_size))
        batches = self._select_batches(order, _epoch_generator(0, number), number, device)
        yield from _finish_batches(batches, device)

    def _select_batches(
        self,
        order: list[Tensor],
        generator: torch.Generator,
        view: int | None,
        device: torch.device,
    ) -> Iterator[Batch]:
        """Gather and crop the bytes of batches, on the device where the images fit on it."""
        images, labels = self._images_on(device)
        at_once = _count_at_once(self.batch_size, images)
        for group in (order[first : first + at_once] for first in range(0, len(order), at_once)):
            index = tensor_to_device(torch.cat(group), images.device)
            pixels = images[index]
            if self.augment:
                crops = torch.cat([self._draw_crops(i, generator, view) for i in group], dim=1)
                crops = tensor_to_device(crops, images.device)
                pixels = crop_at(pixels, crops, self._padding, self.data.flip)
            sizes = [len(host_index) for host_index in group]
            parts = zip(group, torch.split(index, sizes), torch.split(pixels, sizes), strict=True)
            for host_index, part, part_pixels in parts:
                part_labels = None if labels is None else labels[part]
                yield Batch(part_pixels, part_labels, part, view, host_index)

    def _draw_crops(self, index: Tensor, generator: torch.Generator, view: int | None) -> Tensor:
        if view is not None:
            return self._fixed_views.crops(index, view)
        return draw_crops(len(index), generator, self._padding)

    def _images_on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Images and labels: a copy on a GPU for all epochs, or those in memory if it is large."""
        if device not in self._copies:
            is_copied = device.type == "cuda" and _fits_on_gpu(self.data.images, device)
            place = device if is_copied else CPU
            labels = None if self._labels is None else self._labels.to(place)
            self._copies[device] = self.data.images.to(place), labels
        return self._copies[device]


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
        self.samples, self._identity = len(data), next(_identities)
        self._channels: int | None = None
        self.views = views if augment else int(isinstance(data, ImageSet))
        if augment and not (isinstance(data, ImageSet) and isinstance(data.images, StreamedImages)):
            raise DataError(
                "DatasetLoader augments images that are streamed. Use MemoryLoader for an ImageSet "
                "in memory; let a data set of your own augment its samples itself."
            )

    def __len__(self) -> int:
        return _count_batches(self.samples, self.batch_size, self.train)

    def epoch(
        self, number: int, *, cover: bool = False, start: int = 0, device: torch.device = CPU
    ) -> Iterator[Batch]:
        """Yield the batches of epoch `number`; see `Loader.epoch`."""
        generator = _epoch_generator(self.seed, number)
        order = [b.tolist() for b in _draw_order(self, generator, cover)[start:]]
        if not isinstance(self.data, ImageSet):
            yield from _finish_batches(self._load_samples(order, generator, number), device)
            return
        view = number % self.views if self.views else None
        augment_seed = (self.seed, number) if view is None else (0, view)
        batches = self._load_image_set(order, generator, augment_seed, view, device)
        for step, batch in enumerate(_finish_batches(batches, device), start):
            yield replace(batch, source=(self._identity, number, step))

    def _load_samples(
        self, order: list[list[int]], generator: torch.Generator, number: int
    ) -> Iterator[Batch]:
        """Load batches of a user's data set in epoch `number`."""
        data = IndexedDataset(self.data, self.labeled, (self.seed, number))
        for images, labels, index in self._load(data, order, generator, collate_samples):
            self._check_channels(images)
            yield Batch(images, labels if self.labeled else None, index)

    def _check_channels(self, images: Tensor) -> None:
        """Raise DataError for a batch [B, C, H, W] with other channels than those before it."""
        channels = images.shape[1]
        self._channels = self._channels or channels
        if channels != self._channels:
            raise DataError(
                f"All images have the same channels; those of a batch have {self._channels}, and "
                f"of another {channels}. {CONVERT_ADVICE}"
            )

    def view(self, number: int, *, device: torch.device = CPU) -> Iterator[Batch]:
        """Yield all images in order, in fixed augmentation `number`."""
        positions = torch.arange(self.samples, device="cpu")
        order = [batch.tolist() for batch in torch.split(positions, self.batch_size)]
        generator = _epoch_generator(0, number)
        batches = self._load_image_set(order, generator, (0, number), number, device)
        yield from _finish_batches(batches, device)

    def _load_image_set(
        self,
        order: list[list[int]],
        generator: torch.Generator,
        augment_seed: tuple[int, int],
        view: int | None,
        device: torch.device,
    ) -> Iterator[Batch]:
        """Load batches of streamed images: as bytes for a GPU, else as floats."""
        assert isinstance(self.data, ImageSet)
        labels = self.data.labels if self.data.labeled else None
        if self.augment:
            cast(StreamedImages, self.data.images).load_transform(self.data.flip)
        data = IndexedImageSet(self.data, augment_seed if self.augment else None)
        for pixels, index in self._load(data, order, generator, collate_images):
            images = pixels
            if device.type == "cpu":
                # In one thread: PyTorch's idle threads spin and would slow the workers that load
                # the next batch.
                values = np.divide(pixels.numpy(), np.float32(255), dtype=np.float32)
                images = torch.from_numpy(values).permute(0, 3, 1, 2)
            yield Batch(images, None if labels is None else labels[index], index, view)

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
