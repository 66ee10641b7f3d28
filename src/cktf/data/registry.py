"""Data sets by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cktf.data.cifar import load_cifar10
from cktf.data.fashion import load_fashion_mini, load_fashion_mnist
from cktf.data.images import ImageSet
from cktf.errors import DataError, nearest


@dataclass(frozen=True)
class DatasetInfo:
    """One data set that can be named.

    Attributes:
        name: what users call it.
        classes: how many classes it has.
        train, test: how many images.
        summary: one line on what it is and where its files come from.
        needs_directory: whether `--data-dir` must be given.
        load: reads "train" or "test" from a directory.
    """

    name: str
    classes: int
    train: int
    test: int
    summary: str
    needs_directory: bool
    load: Callable[[Path | None, str], ImageSet]


DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            "fashion-mini", 10, 10_000, 5_000,
            "a quarter of Fashion-MNIST, inside this package", False, load_fashion_mini,
        ),
        DatasetInfo(
            "fashion-mnist", 10, 60_000, 10_000,
            "IDX files in --data-dir, or Debian's dataset-fashion-mnist", False, load_fashion_mnist,
        ),
        DatasetInfo(
            "cifar10", 10, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent", True, load_cifar10,
        ),
    )
}  # fmt: skip


def dataset_info(name: str) -> DatasetInfo:
    """What is known of a data set.

    Raises:
        DataError: unknown name.

    >>> dataset_info("cifar10").classes
    10
    """
    if name not in DATASETS:
        raise DataError(f"There is no data set {name!r}. {nearest(name, DATASETS)}")
    return DATASETS[name]


def load_dataset(name: str, directory: Path | None, split: str) -> ImageSet:
    """Read one split, "train" or "test", of a named data set into memory.

    Raises:
        DataError: unknown name, or files that are missing or damaged.
    """
    return dataset_info(name).load(directory, split)
