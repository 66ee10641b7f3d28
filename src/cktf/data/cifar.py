"""CIFAR-10 and CIFAR-100 in their binary and in their Python layout.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. 50,000 training
and 10,000 test images, 32x32, of ten classes, or of a hundred in twenty coarse ones.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from cktf.data.cifar_classes import CIFAR10, CIFAR100
from cktf.data.image_set import ImageSet
from cktf.errors import DataError

_PIXELS = 3 * 32 * 32
_COARSE = 20


@dataclass(frozen=True)
class _Layout:
    """Where one of the two data sets keeps what.

    Attributes:
        name, title: for users, and in messages.
        classes, mean, std: of its images.
        binary, python: folders that its two archives make.
        files: names of the files of each split, without the binary layout's `.bin`.
        coarse: whether a binary record begins with a byte for the coarse class.
        key: of the labels in a file of the Python layout.
        published: the class in torchvision that knows address and check sums.
    """

    name: str
    title: str
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    binary: str
    python: str
    files: dict[str, list[str]]
    coarse: bool
    key: str
    published: str


_TEN = _Layout(
    "cifar10", "CIFAR-10", CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616),
    "cifar-10-batches-bin", "cifar-10-batches-py",
    {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    False, "labels", "CIFAR10",
)  # fmt: skip
_HUNDRED = _Layout(
    "cifar100", "CIFAR-100", CIFAR100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761),
    "cifar-100-binary", "cifar-100-python", {"train": ["train"], "test": ["test"]},
    True, "fine_labels", "CIFAR100",
)  # fmt: skip


def load_cifar10(directory: Path | None, split: str) -> ImageSet:
    """CIFAR-10 from `directory`, or from the folder that its archive makes below it.

    The binary layout is preferred. Where neither is whole, the Python layout is downloaded.

    Raises:
        DataError: no directory given, a damaged file, or nothing found and no network.
    """
    return _load(_TEN, directory, split)


def load_cifar100(directory: Path | None, split: str) -> ImageSet:
    """CIFAR-100 with its hundred fine classes, found as `load_cifar10` finds CIFAR-10.

    Raises:
        DataError: no directory given, a damaged file, or nothing found and no network.
    """
    return _load(_HUNDRED, directory, split)


def _load(layout: _Layout, directory: Path | None, split: str) -> ImageSet:
    if directory is None:
        raise DataError(
            f"{layout.title} needs --data-dir: the folder that holds it, or is to hold it."
        )
    if not directory.is_dir():
        raise DataError(
            f"{layout.title}: there is no folder {directory}. Make it, if it is to be downloaded "
            "there."
        )
    for folder in (directory, directory / layout.binary):
        if (folder / f"{layout.files[split][0]}.bin").is_file():
            return _read_binary(layout, folder, split)
    return _read_python(layout, directory, split)


def _read_binary(layout: _Layout, folder: Path, split: str) -> ImageSet:
    head = 2 if layout.coarse else 1
    parts = [
        _records(layout, folder / f"{name}.bin", head + _PIXELS) for name in layout.files[split]
    ]
    records = np.concatenate(parts)
    if layout.coarse and records[:, 0].max() >= _COARSE:
        raise DataError(
            f"{folder}: coarse labels of {layout.title} are from 0 to {_COARSE - 1}, found "
            f"{records[:, 0].max()}. The files may be damaged, or of another data set."
        )
    return _image_set(layout, records[:, head:], records[:, head - 1])


def _records(layout: _Layout, path: Path, record: int) -> np.ndarray:
    if not path.is_file():
        raise DataError(
            f"{layout.title}: {path.parent} has no {path.name}. Fetch the archive again."
        )
    size = path.stat().st_size
    if not size or size % record:
        raise DataError(
            f"{path} is cut short or damaged: expected {-(-max(size, 1) // record) * record:,} "
            f"bytes, whole records of {record:,}, found {size:,}. Fetch it again."
        )
    return np.fromfile(path, dtype=np.uint8).reshape(-1, record)


def _read_python(layout: _Layout, directory: Path, split: str) -> ImageSet:
    root = directory.parent if directory.name == layout.python else directory
    _complete(layout, root, directory)
    contents = [_plain(layout, root / layout.python / name) for name in layout.files[split]]
    rows = np.concatenate([pixels for pixels, _ in contents])
    return _image_set(layout, rows, np.concatenate([labels for _, labels in contents]))


def _complete(layout: _Layout, root: Path, directory: Path) -> None:
    """Download the Python layout, unless its files are there with the published check sums."""
    from torchvision import datasets  # a second to import, and rarely needed
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    known = getattr(datasets, layout.published)
    folder = root / layout.python
    if all(check_integrity(folder / n, md5) for n, md5 in [*known.train_list, *known.test_list]):
        return
    try:
        download_and_extract_archive(known.url, root, filename=known.filename, md5=known.tgz_md5)
    except Exception as error:
        # torchvision lets through what its archives and sockets raise.
        raise DataError(
            f"{layout.title}: {directory} has no whole {layout.binary} or {layout.python}, and "
            f"downloading it failed ({error}). Put the archive's folder there."
        ) from error


class _Restricted(pickle.Unpickler):
    """Reads arrays, numbers, strings and their containers; any other object is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that NumPy's arrays are made by."""
        if (module, name) == ("numpy", "dtype"):
            return lambda kind, *_: np.dtype(kind, align=False, copy=True)
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if module.endswith("multiarray") and module.startswith("numpy.") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: str(text).encode(str(encoding))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which images do not need")


def _plain(layout: _Layout, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Planes of pixels [N, 3072] and labels [N] of one pickled file."""
    try:
        with path.open("rb") as file:
            found = _unpickle(file)
        pixels, labels = found["data"], found[layout.key]
        # Lists in lists could name more numbers than there is memory for.
        if not isinstance(pixels, np.ndarray) or not all(type(label) is int for label in labels):
            raise ValueError("its data is no array, or its labels no numbers")
        labels = np.asarray(labels)
    except Exception as error:  # a pickle can raise anything
        raise DataError(
            f"{path} is not a file of {layout.title}'s Python layout ({error}). Fetch it again."
        ) from error
    whole = pixels.dtype == np.uint8 and pixels.shape == (len(labels), _PIXELS)
    if not whole or labels.shape != (len(labels),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: expected {_PIXELS:,} bytes and a label for each image, found {pixels.shape} "
            f"of {pixels.dtype} and {len(labels)} labels. Fetch it again."
        )
    return pixels, labels


def _unpickle(file: BinaryIO) -> dict[str, Any]:
    return dict(_Restricted(file, encoding="latin1").load())


def _image_set(layout: _Layout, planes: np.ndarray, labels: np.ndarray) -> ImageSet:
    pixels = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(labels.astype(np.int64)),
        layout.classes,
        layout.mean,
        layout.std,
        name=layout.name,
    )
