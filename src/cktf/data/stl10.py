"""STL-10 in its binary layout.

Source: Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning",
AISTATS 2011. 5,000 training and 8,000 test images of ten classes and 100,000 without labels, 96x96.
An image is three planes, each column by column; labels are from 1 to 10.
"""

from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from cktf.data.image_set import NO_LABEL, UNLABELED_SPLIT
from cktf.data.split_loading import ReadOptions, SplitSource
from cktf.data.stored_images import StoredImages
from cktf.errors import DataError

CLASSES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
# Of all pixels of the 5,000 training images.
MEAN, STD = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
_SIZE = 96
_IMAGE_BYTES = 3 * _SIZE * _SIZE


def open_stl10(directory: Path | None, split: str, _: ReadOptions) -> SplitSource:
    """Locate one split, "train", "test" or "unlabeled", in `directory` or `stl10_binary` below it.

    Raises:
        DataError: no directory, files that are missing or of the wrong size, labels out of range.
    """
    if directory is None:
        raise DataError("STL-10 needs --data-dir: the folder that holds stl10_binary.")
    folders = (directory, directory / "stl10_binary")
    folder = next((f for f in folders if (f / f"{split}_X.bin").is_file()), None)
    if folder is None:
        raise DataError(
            f"STL-10: no {split}_X.bin in {folders[0]} or {folders[1]}. Give as --data-dir the "
            "folder that its archive stl10_binary.tar.gz was unpacked in."
        )
    path = folder / f"{split}_X.bin"
    labels = None if split == UNLABELED_SPLIT else _read_labels(folder / f"{split}_y.bin")
    size = path.stat().st_size
    count = size // _IMAGE_BYTES if labels is None else len(labels)
    if size != max(count, 1) * _IMAGE_BYTES:
        images = "complete images" if labels is None else f"{count:,} images, as many as labels,"
        raise DataError(
            f"{path} is cut short or damaged: expected {max(count, 1) * _IMAGE_BYTES:,} bytes, "
            f"{images} of {_IMAGE_BYTES:,}, found {size:,}. Fetch it again."
        )
    if labels is None:
        labels = torch.full((count,), NO_LABEL, device="cpu")
    return SplitSource("stl10", split, _BinaryFile(path), labels, CLASSES, MEAN, STD, _SIZE)


def _read_labels(path: Path) -> Tensor:
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


@final
class _BinaryFile(StoredImages):
    """The images of one file; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, path.stat().st_size // _IMAGE_BYTES
        self.size = _SIZE, _SIZE

    def __len__(self) -> int:
        return self.count

    def read(self, position: int) -> np.ndarray:
        """The pixels of an image, [96, 96, 3] uint8."""
        planes = np.fromfile(self.path, np.uint8, _IMAGE_BYTES, offset=position * _IMAGE_BYTES)
        return np.ascontiguousarray(planes.reshape(3, _SIZE, _SIZE).transpose(2, 1, 0))

    def image_name(self, position: int) -> str:
        """The file and the position in it."""
        return f"{self.path}[{position}]"
