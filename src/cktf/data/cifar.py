"""CIFAR-10 and CIFAR-100 in their binary and their Python layout.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 50,000 training
and 10,000 test images, 32x32, of ten classes, or of a hundred in twenty coarse ones.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cktf.data.cifar_classes import CIFAR10, CIFAR100
from cktf.data.image_set import ImageSet
from cktf.errors import DataError

_PIXELS = 3 * 32 * 32
_COARSE_CLASSES = 20


@dataclass(frozen=True)
class CifarLayout:
    """Files and constants of one data set.

    Attributes:
        name, title: the data set's name for users, and in messages.
        classes, mean, std: class names; statistics of the training images in [0, 1].
        binary_folder, python_folder: folders in its two archives.
        files: file names of each split, without the binary layout's `.bin`.
        has_coarse_label: whether a binary record begins with a byte for the coarse class.
        label_key: key of the labels in a file of the Python layout.
        torchvision_class: the class in torchvision with the address and the check sums.
    """

    name: str
    title: str
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    binary_folder: str
    python_folder: str
    files: dict[str, list[str]]
    has_coarse_label: bool
    label_key: str
    torchvision_class: str


CIFAR10_LAYOUT = CifarLayout(
    "cifar10", "CIFAR-10", CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    "cifar-10-batches-bin", "cifar-10-batches-py",
    {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    False, "labels", "CIFAR10",
)  # fmt: skip
CIFAR100_LAYOUT = CifarLayout(
    "cifar100", "CIFAR-100", CIFAR100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761),
    "cifar-100-binary", "cifar-100-python", {"train": ["train"], "test": ["test"]},
    True, "fine_labels", "CIFAR100",
)  # fmt: skip


def load_cifar(layout: CifarLayout, directory: Path | None, split: str) -> ImageSet:
    """Load CIFAR-10, or CIFAR-100 with its fine classes, from `directory` or a folder below it.

    The folder is the archive's; the binary layout is preferred. Where neither layout is complete,
    the Python layout is downloaded.

    Raises:
        DataError: no directory, a damaged file, or no files and no network.
    """
    if directory is None:
        raise DataError(
            f"{layout.title} needs --data-dir: the folder with its files, or for its download."
        )
    if not directory.is_dir():
        raise DataError(
            f"{layout.title}: there is no folder {directory}. Create it to download the "
            "data set there."
        )
    for folder in (directory, directory / layout.binary_folder):
        if (folder / f"{layout.files[split][0]}.bin").is_file():
            return _read_binary(layout, folder, split)
    return _read_python(layout, directory, split)


load_cifar10 = partial(load_cifar, CIFAR10_LAYOUT)
load_cifar100 = partial(load_cifar, CIFAR100_LAYOUT)


def _read_binary(layout: CifarLayout, folder: Path, split: str) -> ImageSet:
    label_bytes = 2 if layout.has_coarse_label else 1
    paths = [folder / f"{name}.bin" for name in layout.files[split]]
    records = np.concatenate([_read_records(layout, path, label_bytes + _PIXELS) for path in paths])
    if layout.has_coarse_label and records[:, 0].max() >= _COARSE_CLASSES:
        raise DataError(
            f"{folder}: coarse labels of {layout.title} are from 0 to {_COARSE_CLASSES - 1}, found "
            f"{records[:, 0].max()}. The files may be damaged, or of another data set."
        )
    return _image_set(layout, records[:, label_bytes:], records[:, label_bytes - 1])


def _read_records(layout: CifarLayout, path: Path, record_bytes: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(
            f"{layout.title}: {path.parent} has no {path.name}. Fetch the archive again."
        )
    size = path.stat().st_size
    if not size or size % record_bytes:
        expected = -(-max(size, 1) // record_bytes) * record_bytes
        raise DataError(
            f"{path} is cut short or damaged: expected {expected:,} bytes, complete records of "
            f"{record_bytes:,}, found {size:,}. Fetch it again."
        )
    return np.fromfile(path, dtype=np.uint8).reshape(-1, record_bytes)


def _read_python(layout: CifarLayout, directory: Path, split: str) -> ImageSet:
    root = directory.parent if directory.name == layout.python_folder else directory
    _download_if_incomplete(layout, root, directory)
    paths = [root / layout.python_folder / name for name in layout.files[split]]
    pixels, labels = zip(*(_read_pickle(layout, path) for path in paths), strict=True)
    return _image_set(layout, np.concatenate(pixels), np.concatenate(labels))


def _download_if_incomplete(layout: CifarLayout, root: Path, directory: Path) -> None:
    """Download the Python layout unless all files have the published check sums."""
    from torchvision import datasets  # the import takes a second
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    dataset = getattr(datasets, layout.torchvision_class)
    folder = root / layout.python_folder
    if all(
        check_integrity(folder / n, md5) for n, md5 in [*dataset.train_list, *dataset.test_list]
    ):
        return
    try:
        download_and_extract_archive(
            dataset.url, root, filename=dataset.filename, md5=dataset.tgz_md5
        )
    except Exception as error:  # torchvision passes on errors of archives and sockets
        raise DataError(
            f"{layout.title}: {directory} has no complete {layout.binary_folder} or "
            f"{layout.python_folder}, and downloading it failed ({error}). Unpack it there."
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, strings and their containers; any other object raises."""

    def find_class(self, module: str, name: str) -> Any:
        """Allow only the functions that build NumPy arrays."""
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, *_: np.dtype(kind, align=False, copy=True)
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if module.endswith("multiarray") and module.startswith("numpy.") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode(str(encoding))
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which images do not need")


def _read_pickle(layout: CifarLayout, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels [N, 3072] and labels [N] of one pickled file."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        pixels, labels = content["data"], content[layout.label_key]
        # Nested lists could expand to more numbers than fit into memory.
        if not isinstance(pixels, np.ndarray) or not all(type(label) is int for label in labels):
            raise ValueError("its data is not an array, or its labels are not numbers")
        labels = np.asarray(labels)
    except Exception as error:  # unpickling raises errors of many types
        raise DataError(
            f"{path} is not a file of {layout.title}'s Python layout ({error}). Fetch it again."
        ) from error
    expected_shape = (len(labels), _PIXELS)
    if pixels.dtype != np.uint8 or pixels.shape != expected_shape or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected {_PIXELS:,} bytes and a label for each image, found {pixels.shape} "
            f"of {pixels.dtype} and {len(labels)} labels. Fetch it again."
        )
    return pixels, labels


def _image_set(layout: CifarLayout, planes: np.ndarray, labels: np.ndarray) -> ImageSet:
    pixels = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(labels.astype(np.int64)),
        layout.classes,
        layout.mean,
        layout.std,
        name=layout.name,
    )
