"""A data set of images, in one tensor or read when asked for, with their labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, cast
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from cktf.data.stored_images import StoredImages, StoredSubset
from cktf.data.streamed_images import StreamedImages
from cktf.errors import DataError, nearest

# The label of every image in a split without labels.
NO_LABEL = -1
UNLABELED_SPLIT, VALIDATION_SPLIT = "unlabeled", "validation"


class Images(Protocol):
    """Images [N, H, W, C] uint8: a tensor, or an object that reads one image at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, H, W, C."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, position: Any, /) -> Tensor:
        """One image [H, W, C]."""


ImagesT = TypeVar("ImagesT", bound=Images, default=Tensor, covariant=True)


@dataclass(frozen=True)
class ImageSet(Generic[ImagesT]):
    """Images and labels; also a map-style data set of `(image, label)`.

    Attributes:
        images: [N, H, W, C] uint8; a tensor, or `StreamedImages` for what exceeds memory.
        labels: [N] int64; all of them NO_LABEL for images without labels.
        classes: class names, in the order of the labels.
        mean, std: per channel of images in [0, 1], for networks that train on this set.
        flip: whether a mirrored image still belongs to its class.
        name: the data set's name for users.
        note: remarks on the files, for the log.
        stored: the files that the images were read from; None for a set without files.
    """

    images: ImagesT
    labels: Tensor
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    name: str = "data"
    note: str = ""
    stored: StoredImages | None = None

    def __repr__(self) -> str:
        return (
            f"ImageSet(name={self.name!r}, images={list(self.images.shape)}, "
            f"classes={len(self.classes)})"
        )

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or not len(self.images):
            raise DataError(
                f"{self.name}: a data set has at least one image and a label for each; given "
                f"{len(self.images)} images and {len(self.labels)} labels."
            )
        is_bytes = not isinstance(self.images, Tensor) or self.images.dtype == torch.uint8
        if len(self.images.shape) != 4 or not is_bytes or self.labels.dtype != torch.int64:
            raise DataError(
                f"{self.name}: an ImageSet has images [N, H, W, C] of uint8 and labels [N] of "
                f"int64; given images {tuple(self.images.shape)} of "
                f"{getattr(self.images, 'dtype', torch.uint8)} and labels of {self.labels.dtype}. "
                "Convert them, or give a TensorDataset of floats [N, C, H, W] and class numbers."
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if self.labeled and not 0 <= low <= high < len(self.classes):
            raise DataError(
                f"{self.name}: labels run from {low} to {high}, and there are "
                f"{len(self.classes)} classes. The files may be damaged, or of another data set."
            )

    @property
    def labeled(self) -> bool:
        """Whether the images have labels: all of them or none."""
        return bool((self.labels != NO_LABEL).any())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.images[position].permute(2, 0, 1).float() / 255, int(self.labels[position])

    def image_name(self, position: int) -> str:
        """The path or name of an image's file; without files, its number from 0."""
        return f"image {position}" if self.stored is None else self.stored.image_name(position)

    def subset(self, positions: Tensor) -> "ImageSet[Images]":
        """Select the images at some positions, in that order."""
        images: Images
        if isinstance(self.images, StreamedImages):
            images = self.images.subset(positions.tolist())
        else:
            images = self.images[positions]
        stored = self.stored and StoredSubset(self.stored, positions.tolist())
        data = cast("ImageSet[Images]", self)
        return replace(data, images=images, labels=self.labels[positions], stored=stored)

    def select_classes(self, names: Sequence[str]) -> "ImageSet[Images]":
        """Select the images of some classes, which are renumbered in the order of `names`.

        Raises:
            DataError: an unknown or repeated name, fewer than two, or images without labels.
        """
        # An accent may be part of its letter or a character of its own.
        known = [normalize("NFC", name) for name in self.classes]
        unknown = [name for name in names if normalize("NFC", name) not in known]
        if unknown:
            raise DataError(
                f"{self.name} has no class {unknown[0]!r}. {nearest(unknown[0], self.classes)}"
            )
        chosen = [known.index(normalize("NFC", name)) for name in names]
        if len(set(chosen)) != len(names) or len(names) < 2 or not self.labeled:
            raise DataError(
                f"{self.name}: two classes or more, each once, are chosen from labeled images; "
                f"given {', '.join(names)}{'' if self.labeled else ', and no labels'}."
            )
        new_labels = torch.full((len(self.classes),), NO_LABEL, device="cpu")
        new_labels[chosen] = torch.arange(len(names), device="cpu")
        labels, classes = new_labels[self.labels], tuple(self.classes[i] for i in chosen)
        positions = torch.flatten((labels != NO_LABEL).nonzero())
        return replace(self.subset(positions), labels=labels[positions], classes=classes)

    def without_labels(self) -> "ImageSet[ImagesT]":
        """The same images without labels and classes."""
        return replace(self, labels=torch.full_like(self.labels, NO_LABEL), classes=())

    def describe(self) -> str:
        """Summarize count, classes, size, storage and remarks in one line.

        >>> import torch
        >>> images, labels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.tensor([0, 1])
        >>> ImageSet(images, labels, ("cat", "dog"), (0.5,) * 3, (0.2,) * 3).describe()
        '2 images of 2 classes, 32x32, in memory (0.0 MB)'
        """
        count, height, width, channels = self.images.shape
        labels = f"of {len(self.classes)} classes" if self.labeled else "without labels"
        storage = (
            "read from disk batch by batch"
            if isinstance(self.images, StreamedImages)
            else f"in memory ({count * height * width * channels / 1e6:,.1f} MB)"
        )
        gray = ", gray" if channels == 1 else ""
        note = f"; {self.note}" if self.note else ""
        return f"{count:,} images {labels}, {height}x{width}{gray}, {storage}{note}"


def hash_images(data: ImageSet[Images]) -> str:
    """SHA-256 of the pixels in memory, or of the names and the ends of image files."""
    digest = hashlib.sha256(f"{data.name} {tuple(data.images.shape)}".encode())
    if isinstance(data.images, StreamedImages):
        stored = data.images.stored
        for position in range(len(stored)):
            digest.update(stored.image_name(position).encode())
            if stored.size is None:
                digest.update(stored.read_tail(position))
            else:
                digest.update(np.asarray(stored.read(position)).tobytes())
    else:
        digest.update(np.ascontiguousarray(data.images.numpy()).data)  # type: ignore[attr-defined]
    return digest.hexdigest()
