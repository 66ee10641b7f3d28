"""Load one split of a data set: into memory where it fits, else to be read batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cktf.data.image_decoding import (
    GRAY,
    RGB,
    describe_error,
    resize_and_center_crop,
    to_uint8_tensor,
)
from cktf.data.image_set import NO_LABEL, Images, ImageSet
from cktf.data.stored_images import ImageArrays, StoredImages
from cktf.data.streamed_images import StreamedImages
from cktf.errors import DataError

# Bytes of pixels up to which a split is held in memory.
MEMORY_BUDGET = 2 * 2**30
# Weights of red, green and blue in Pillow's gray images (ITU-R BT.601).
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ReadOptions:
    """How the images of a data set are read.

    Attributes:
        image_size: pixels of a side; None for the data set's usual size.
        channels: 3, or 1 for gray images.
        skip_broken: leave out images that cannot be read, instead of raising an error.
        budget: bytes of pixels up to which a split is held in memory.
        crops: training draws random crops from the stored images, so that none is held in memory.
        hold_out: an image folder or a table without a test split holds out a fifth of each class;
            without this option the test split is all of it.
        image_column, label_column: of tables; None for those found by type or name.
    """

    image_size: int | None = None
    channels: int = RGB
    skip_broken: bool = False
    budget: int = MEMORY_BUDGET
    crops: bool = False
    hold_out: bool = True
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class SplitSource:
    """One split of a data set whose files are located but whose images are not read yet.

    Attributes:
        name: the data set's name as the user gave it.
        split: "train", "test" or "unlabeled".
        stored: the images, of any size.
        labels: [N] int64.
        classes: class names, in the order of the labels.
        mean, std: per channel of RGB images in [0, 1].
        size: pixels of a side unless the user asks for another size.
        flip: whether a mirrored image still belongs to its class.
        note: remarks on the files, for the log.
    """

    name: str
    split: str
    stored: StoredImages
    labels: Tensor
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    flip: bool = True
    note: str = ""

    def without_labels(self) -> "SplitSource":
        """The same images, without their labels and classes."""
        return replace(self, labels=torch.full_like(self.labels, NO_LABEL), classes=())


class BrokenImagesError(DataError):
    """Images that cannot be read.

    Args:
        name: of the data set.
        broken: the name of each broken image, with the reason in brackets.
        count: of all images, broken ones included.
    """

    def __init__(self, name: str, broken: list[str], count: int) -> None:
        self.name, self.broken, self.count = name, broken, count
        super().__init__(
            f"{name}: all images must be readable, and {len(broken):,} of {count:,} are not: "
            f"{abbreviate(broken)}. Repair or delete them, or skip them with --set "
            "data.skip_broken=true."
        )


def abbreviate(names: Sequence[str], limit: int = 10) -> str:
    """List the first names and count the others.

    >>> abbreviate(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    others = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + others


def source_from_image_set(data: ImageSet, split: str) -> SplitSource:
    """Wrap images that are in memory already."""
    stored = ImageArrays(data.images.numpy(), f"{data.name} {split}")
    size = data.images.shape[1]
    return SplitSource(
        data.name, split, stored, data.labels, data.classes, data.mean, data.std, size, data.flip
    )


def load_split(source: SplitSource, options: ReadOptions | None = None) -> ImageSet[Images]:
    """Load the images of a split.

    Raises:
        BrokenImagesError: images that cannot be read, unless they are to be skipped.
        DataError: every image of a class is broken.
    """
    options = options or ReadOptions()
    size, channels = options.image_size or source.size, options.channels
    needed_bytes = len(source.stored) * size * size * channels
    images: Images
    if needed_bytes > options.budget or (options.crops and source.split != "test"):
        images = StreamedImages(source.stored, size, channels)
        find_defect = partial(source.stored.find_defect, decode_png=options.skip_broken)
        # Raw pixels always decode.
        results = source.stored.map_positions(find_defect) if source.stored.size is None else ()
        defects = {i: defect for i, defect in enumerate(results) if defect is not None}
    else:
        images, defects = _load_into_memory(source.stored, size, channels)
    mean, std = source.mean, source.std
    if channels == GRAY:
        mean = (sum(w * m for w, m in zip(_LUMA, mean, strict=True)),)
        std = (sum(std) / len(std),)
    # ImageSet checks the labels before any other use of them.
    data = ImageSet(
        images, source.labels, source.classes, mean, std, source.flip, source.name, source.note,
        # Raw pixels have no names, and would be in memory twice.
        stored=source.stored if source.stored.size is None else None,
    )  # fmt: skip
    return _drop_broken(data, source, defects, options.skip_broken) if defects else data


def _load_into_memory(
    stored: StoredImages, size: int, channels: int
) -> tuple[Tensor, dict[int, str]]:
    """Images [N, S, S, C] uint8, and the defect of each position that cannot be read."""
    if stored.size == (size, size):
        pixels = stored.read_all_pixels()
        if pixels.shape[3] == channels:
            return torch.from_numpy(pixels), {}
    images = torch.empty(len(stored), size, size, channels, dtype=torch.uint8, device="cpu")

    def load(position: int) -> str | None:
        try:
            image = stored.load_image(position, channels, 2 * size)
            images[position] = to_uint8_tensor(resize_and_center_crop(image, size))
        except Exception as error:  # Pillow's decoders raise errors of many types
            return describe_error(error)
        return None

    defects = enumerate(stored.map_positions(load))
    return images, {i: defect for i, defect in defects if defect is not None}


def _drop_broken(
    data: ImageSet[Images], source: SplitSource, defects: dict[int, str], skip: bool
) -> ImageSet[Images]:
    broken = [f"{source.stored.image_name(i)} ({defect})" for i, defect in defects.items()]
    if not skip:
        raise BrokenImagesError(source.name, broken, len(data))
    intact = torch.ones(len(data), dtype=torch.bool, device="cpu")
    intact[list(defects)] = False
    lost_labels = set(data.labels.tolist()) - set(data.labels[intact].tolist())
    if lost_labels:
        names = sorted(data.classes[label] for label in lost_labels) if data.labeled else ["all"]
        raise DataError(
            f"{source.name}: each class needs an image that can be read; none is left in "
            f"{source.split} of {abbreviate(names)}, after skipping {abbreviate(broken)}. Fetch "
            "them again."
        )
    remaining = data.subset(torch.flatten(intact.nonzero()))
    skipped = f"{len(defects):,} broken left out"
    return replace(remaining, note=f"{data.note}; {skipped}" if data.note else skipped)
