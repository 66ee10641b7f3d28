"""From files to images: in memory where they fit, read batch by batch where they do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import psutil
import torch
from torch import Tensor

from cktf.data.image_decoding import (
    GRAY,
    RGB,
    describe_error,
    resize_and_center_crop,
    to_uint8_tensor,
)
from cktf.data.image_set import Images, ImageSet
from cktf.data.stored_images import ImageArrays, StoredImages
from cktf.data.streamed_images import StreamedImages
from cktf.errors import DataError

# Bytes of pixels that are kept in memory.
BUDGET = 2 * 2**30
# Brightness of red, green and blue, by which Pillow makes gray images (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)
_NAMED = 10


@dataclass(frozen=True)
class ReadOptions:
    """How a data set is read.

    Attributes:
        image_size: pixels of a side; None is the data set's own.
        channels: 3, or 1 for gray images.
        skip_broken: leave out what cannot be read, in place of stopping.
        budget: bytes of pixels up to which a split is kept in memory.
        crops: whether images to learn from are cut from what is stored, so that none is kept.
        hold_out: of a folder of images that has no test split, keep a part for one; without, all of
            it is any split that is asked for.
    """

    image_size: int | None = None
    channels: int = RGB
    skip_broken: bool = False
    budget: int = BUDGET
    crops: bool = False
    hold_out: bool = True


@dataclass(frozen=True)
class SplitSource:
    """One split of a data set, found but not read.

    Attributes:
        name: what users call the data set.
        split: what they call this part of it.
        pictures: its images, of any size.
        labels: [N] int64.
        classes: names, in the order of the labels.
        mean, std: per channel of RGB images in [0, 1].
        size: pixels of a side where a user asks for none.
        flip: whether a mirrored image is still one of its class.
        note: what was found.
    """

    name: str
    split: str
    pictures: StoredImages
    labels: Tensor
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    flip: bool = True
    note: str = ""


class BrokenImagesError(DataError):
    """Images that cannot be read.

    Args:
        name: of the data set.
        found: a name and a reason for each.
        count: of all images, whole ones included.
    """

    def __init__(self, name: str, found: list[str], count: int) -> None:
        self.name, self.found, self.count = name, found, count
        super().__init__(
            f"{name}: all images must be readable, and {len(found):,} of {count:,} are not: "
            f"{abbreviate(found)}. Mend or delete them, or leave them out with --set "
            "data.skip_broken=true."
        )


def abbreviate(names: Sequence[str], limit: int = _NAMED) -> str:
    """The first names, and how many more there are.

    >>> abbreviate(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def source_from_arrays(data: ImageSet, split: str) -> SplitSource:
    """Images that are in memory already, as a source."""
    pictures = ImageArrays(data.images.numpy(), f"{data.name} {split}")
    size = data.images.shape[1]
    return SplitSource(
        data.name, split, pictures, data.labels, data.classes, data.mean, data.std, size, data.flip
    )


def read(source: SplitSource, reading: ReadOptions | None = None) -> ImageSet[Images]:
    """The images of a source as training takes them.

    Raises:
        BrokenImagesError: some cannot be read, and none were to be skipped.
        DataError: nothing is left, or memory does not hold them.
    """
    reading = reading or ReadOptions()
    size, count = reading.image_size or source.size, len(source.pictures)
    needed = count * size * size * reading.channels
    images: Images
    if needed > reading.budget or (reading.crops and source.split != "test"):
        flaws = _flaws(source.pictures, thorough=reading.skip_broken)
        images = StreamedImages(source.pictures, size, reading.channels)
    else:
        _check_memory(source, size, needed)
        images, flaws = _in_memory(source.pictures, size, reading.channels)
    mean, std = source.mean, source.std
    if reading.channels == GRAY:
        mean = (sum(w * m for w, m in zip(_LUMA, mean, strict=True)),)
        std = (sum(std) / len(std),)
    # Labels out of range are an error here, before anything else is made of them.
    data = ImageSet(
        images, source.labels, source.classes, mean, std, source.flip, source.name, source.note
    )
    return _without(data, source, flaws, reading.skip_broken) if flaws else data


def _check_memory(source: SplitSource, size: int, needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{source.name}: {len(source.pictures):,} images of {size}x{size} take "
            f"{needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. Free some, or "
            "choose a smaller data.image_size."
        )


def _in_memory(pictures: StoredImages, size: int, channels: int) -> tuple[Tensor, dict[int, str]]:
    """[N, S, S, C] uint8, and why those are empty that cannot be read."""
    stored = pictures.whole() if pictures.size == (size, size) else None
    if stored is not None and stored.shape[3] == channels:
        return torch.from_numpy(np.ascontiguousarray(stored)), {}
    images = torch.empty(len(pictures), size, size, channels, dtype=torch.uint8)

    def fill(position: int) -> str | None:
        try:
            picture = pictures.decoded(position, channels, 2 * size)
            images[position] = to_uint8_tensor(resize_and_center_crop(picture, size))
        except Exception as error:  # decoders let through what they meet
            return describe_error(error)
        return None

    return images, {i: why for i, why in enumerate(pictures.each(fill)) if why is not None}


def _flaws(pictures: StoredImages, thorough: bool) -> dict[int, str]:
    if pictures.size is not None:  # pixels cannot be damaged in this way
        return {}
    found = pictures.each(partial(pictures.flaw, thorough=thorough))
    return {i: why for i, why in enumerate(found) if why is not None}


def _without(
    data: ImageSet[Images], source: SplitSource, flaws: dict[int, str], skip: bool
) -> ImageSet[Images]:
    """The images that can be read, if the others are to be skipped."""
    found = [f"{source.pictures.name(i)} ({why})" for i, why in flaws.items()]
    if not skip:
        raise BrokenImagesError(source.name, found, len(data))
    whole = torch.ones(len(data), dtype=torch.bool)
    whole[list(flaws)] = False
    lost = set(data.labels.tolist()) - set(data.labels[whole].tolist())
    if lost:
        names = sorted(data.classes[label] for label in lost) if data.labeled else ["all"]
        raise DataError(
            f"{source.name}: a class has at least one image that can be read; none is left in "
            f"{source.split} of {abbreviate(names)}, after skipping {abbreviate(found)}. Fetch "
            "them again."
        )
    kept = data.subset(torch.flatten(whole.nonzero()))
    skipped = f"{len(flaws):,} broken left out"
    return replace(kept, note=f"{data.note}; {skipped}" if data.note else skipped)
