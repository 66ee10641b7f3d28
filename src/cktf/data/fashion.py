"""Fashion-MNIST: the whole set from its IDX files, and the small part inside this package.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017, arXiv 1708.07747; MIT license. The 28x28 gray images are padded to 32x32
and given three channels, so that networks for 32-pixel color images take them.
"""

import gzip
import lzma
import math
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from cktf.data.image_set import ImageSet
from cktf.errors import DataError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Of all 60,000 padded training images.
MEAN, STD = (0.2190,) * 3, (0.3318,) * 3
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Ten times the largest file: a gzipped file may unpack to any size.
_MAX_BYTES = 10 * 60_000 * 28 * 28
_PREFIX = {"train": "train", "test": "t10k"}


def _pad_to_32(name: str, pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    """Pad gray images [N, 28, 28] to 32x32 and repeat them in three channels."""
    padded = F.pad(torch.from_numpy(pixels), (2, 2, 2, 2))
    images = padded.unsqueeze(3).expand(-1, -1, -1, 3).contiguous()
    return ImageSet(images, torch.from_numpy(labels).long(), CLASSES, MEAN, STD, name=name)


def load_fashion_mini(directory: Path | None, split: str) -> ImageSet:
    """Load 10,000 training or 5,000 test images that ship with the package."""
    packed = files("cktf.data").joinpath("fashion_mini", f"{split}.xz").read_bytes()
    raw = np.frombuffer(lzma.decompress(packed), dtype=np.uint8).reshape(-1, 1 + 28 * 28)
    return _pad_to_32("fashion-mini", raw[:, 1:].reshape(-1, 28, 28).copy(), raw[:, 0].copy())


def load_fashion_mnist(directory: Path | None, split: str) -> ImageSet:
    """Load 60,000 training or 10,000 test images from IDX files, gzipped or not.

    They are in `directory`, in torchvision's `FashionMNIST/raw` below it, or without a directory
    where Debian's package dataset-fashion-mnist puts them.

    Raises:
        DataError: a missing or malformed file.
    """
    prefix = _PREFIX[split]
    pixels = _read_idx(_find_file(directory, f"{prefix}-images-idx3-ubyte"), 3)
    labels = _read_idx(_find_file(directory, f"{prefix}-labels-idx1-ubyte"), 1)
    if pixels.shape[1:] != (28, 28) or len(pixels) != len(labels):
        raise DataError(
            f"Fashion-MNIST has 28x28 images and a label for each; found images {pixels.shape} and "
            f"{len(labels)} labels. The files may be of another data set."
        )
    return _pad_to_32("fashion-mnist", pixels, labels)


def _find_file(directory: Path | None, name: str) -> Path:
    folders = [DEBIAN] if directory is None else [directory, directory / "FashionMNIST" / "raw"]
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(
        f"Fashion-MNIST: no {name} or {name}.gz in "
        f"{' or '.join(map(str, folders))}. Give --data-dir, the folder with the four IDX files, "
        "or install Debian's package dataset-fashion-mnist."
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file: two zeros, type 8, the number of axes, their lengths, the values."""
    open_file = gzip.open if path.suffix == ".gz" else Path.open
    try:
        with open_file(path, "rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}). Fetch it again.") from error
    if len(raw) > _MAX_BYTES:
        raise DataError(
            f"{path} holds more than {_MAX_BYTES:,} bytes, ten times the data set. Fetch it again."
        )
    head = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(raw[4:head].ljust(4 * dimensions, b"\0"), dtype=">i4").tolist())
    if raw[:4] != bytes([0, 0, 8, dimensions]) or len(raw) - head != math.prod(shape):
        raise DataError(
            f"{path} is not an IDX file of {dimensions}-dimensional bytes, or is cut short: "
            f"{len(raw)} bytes. Fetch it again."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape).copy()
