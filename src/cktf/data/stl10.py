"""STL-10 in its binary layout.

Source: Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning",
AISTATS 2011. 5,000 training and 8,000 test images of ten classes and 100,000 without labels, 96x96.
An image is three planes, each column by column; labels are from 1 to 10.
"""

from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cktf.data.image_set import NO_LABEL, UNLABELED_SPLIT
from cktf.data.split_loading import ReadOptions, SplitSource
from cktf.data.stored_images import StoredImages, array_image
from cktf.errors import DataError

CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
# Of all pixels of the 5,000 training images.
MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
_SIZE = 96
_RECORD = 3 * _SIZE * _SIZE


def open_stl10(directory: Path | None, split: str, reading: ReadOptions) -> SplitSource:
    """One split, "train", "test" or "unlabeled", from `directory` or `stl10_binary` below it.

    Raises:
        DataError: no directory, files that are missing or of the wrong size, labels out of range.
    """
    folder = _folder(directory, split)
    path = folder / f"{split}_X.bin"
    labels = None if split == UNLABELED_SPLIT else _labels(folder / f"{split}_y.bin")
    size = path.stat().st_size
    count = size // _RECORD if labels is None else len(labels)
    if size != max(count, 1) * _RECORD:
        of = "whole images" if labels is None else f"{count:,} images, as many as labels,"
        raise DataError(
            f"{path} is cut short or damaged: expected {max(count, 1) * _RECORD:,} bytes, {of} of "
            f"{_RECORD:,}, found {size:,}. Fetch it again."
        )
    if labels is None:
        labels = torch.full((count,), NO_LABEL)
    return SplitSource("stl10", split, _Columns(path), labels, _classes(folder), MEAN, STD, _SIZE)


def _folder(directory: Path | None, split: str) -> Path:
    if directory is None:
        raise DataError("STL-10 needs --data-dir: the folder that holds stl10_binary.")
    for folder in (directory, directory / "stl10_binary"):
        if (folder / f"{split}_X.bin").is_file():
            return folder
    raise DataError(
        f"STL-10: no {split}_X.bin in {directory} or {directory / 'stl10_binary'}. Give as "
        "--data-dir the folder that its archive stl10_binary.tar.gz was unpacked in."
    )


def _labels(path: Path) -> Tensor:
    if not path.is_file():
        raise DataError(f"STL-10: {path.parent} has no {path.name}. Fetch the archive again.")
    labels = np.fromfile(path, dtype=np.uint8)
    if not len(labels) or not 1 <= labels.min() <= labels.max() <= len(CLASSES):
        found = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "none"
        raise DataError(
            f"{path}: labels of STL-10 are from 1 to {len(CLASSES)}, a byte each; found {found}. "
            "Fetch it again."
        )
    return torch.from_numpy(labels.astype(np.int64) - 1)


def _classes(folder: Path) -> tuple[str, ...]:
    path = folder / "class_names.txt"
    if not path.is_file():
        return CLASSES
    names = tuple(path.read_text(encoding="utf-8").split())
    if len(names) != len(CLASSES):
        raise DataError(
            f"{path}: STL-10 has {len(CLASSES)} classes, found {len(names)} names. Fetch it again, "
            "or delete it, and the usual names are taken."
        )
    return names


@final
class _Columns(StoredImages):
    """The images of one file, read one by one or all at once."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, path.stat().st_size // _RECORD

    def __len__(self) -> int:
        return self.count

    def open(self, position: int) -> Image.Image:
        """One image."""
        return array_image(self._read(position, 1)[0])

    def name(self, position: int) -> str:
        """Its number in the file."""
        return f"{self.path}[{position}]"

    def tail(self, position: int) -> bytes:
        """Pixels have no end mark."""
        return b""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of all of them."""
        return _SIZE, _SIZE

    def whole(self) -> np.ndarray:
        """The whole file."""
        return self._read(0, self.count)

    def _read(self, first: int, count: int) -> np.ndarray:
        raw = np.fromfile(self.path, np.uint8, count * _RECORD, offset=first * _RECORD)
        columns = raw.reshape(count, 3, _SIZE, _SIZE)
        return np.ascontiguousarray(columns.transpose(0, 3, 2, 1))
