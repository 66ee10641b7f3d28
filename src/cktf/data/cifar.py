"""CIFAR-10 in its binary and in its Python layout.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 50,000 training
and 10,000 test images, 32x32, ten classes.
"""

from pathlib import Path

import numpy as np
import torch

from cktf.data.images import ImageSet
from cktf.errors import DataError

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_RECORD = 1 + 3 * 32 * 32
_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


def load_cifar10(directory: Path | None, split: str) -> ImageSet:
    """CIFAR-10 from `directory`, or from the folder that its archive makes below it.

    The binary layout (`cifar-10-batches-bin`) is read here, the Python layout
    (`cifar-10-batches-py`) by torchvision, which checks its files and, where neither is there,
    downloads it.

    Raises:
        DataError: no directory given, a damaged file, or nothing found and no network.
    """
    if directory is None:
        raise DataError("CIFAR-10 needs --data-dir: the folder that holds it, or is to hold it.")
    if not directory.is_dir():
        raise DataError(
            f"CIFAR-10: there is no folder {directory}. Make it, if it is to be downloaded there."
        )
    for folder in (directory, directory / "cifar-10-batches-bin"):
        if (folder / _FILES[split][0]).is_file():
            return _read_binary(folder, split)
    return _read_python(directory, split)


def _read_binary(folder: Path, split: str) -> ImageSet:
    parts = []
    for name in _FILES[split]:
        path = folder / name
        if not path.is_file():
            raise DataError(f"CIFAR-10: {folder} has no {name}. Fetch the archive again.")
        raw = np.fromfile(path, dtype=np.uint8)
        if not len(raw) or len(raw) % _RECORD:
            raise DataError(
                f"{path} is cut short or damaged: {len(raw)} bytes are not whole records of "
                f"{_RECORD}. Fetch it again."
            )
        parts.append(raw.reshape(-1, _RECORD))
    records = np.concatenate(parts)
    pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _image_set(pixels, records[:, 0])


def _read_python(directory: Path, split: str) -> ImageSet:
    from torchvision import datasets  # a second to import, and rarely needed

    # torchvision wants the folder above cifar-10-batches-py.
    root = directory.parent if directory.name == "cifar-10-batches-py" else directory
    train = split == "train"
    try:
        found = datasets.CIFAR10(root, train=train, download=True)
    except Exception as error:
        # torchvision lets through what its pickles, archives and sockets raise.
        raise DataError(
            f"CIFAR-10: {directory} has no whole cifar-10-batches-bin or cifar-10-batches-py, and "
            f"downloading it failed ({error}). Put the archive's folder there."
        ) from error
    return _image_set(found.data, np.asarray(found.targets))


def _image_set(pixels: np.ndarray, labels: np.ndarray) -> ImageSet:
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    return ImageSet(images, torch.from_numpy(labels).long(), CLASSES, MEAN, STD, name="cifar10")
