"""Data sets by name: `cifar100`, `imagefolder:DIR`, `hf:NAME`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from cktf.data.cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT, load_cifar
from cktf.data.fashion import load_fashion_mini, load_fashion_mnist
from cktf.data.hub import is_saved_dataset, open_hub_dataset
from cktf.data.image_folder import open_image_folder
from cktf.data.image_set import NO_LABEL, UNLABELED_SPLIT, Images, ImageSet
from cktf.data.split_loading import (
    BrokenImagesError,
    ReadOptions,
    SplitSource,
    load_split,
    source_from_image_set,
)
from cktf.data.stl10 import open_stl10
from cktf.data.tiny_imagenet import open_tiny_imagenet
from cktf.errors import DataError, nearest
from cktf.user_paths import expand_user_path

_OpenSplit = Callable[[Path | None, str, ReadOptions], SplitSource]


@dataclass(frozen=True)
class DatasetInfo:
    """A data set that is known by name.

    Attributes:
        name: for users.
        classes: number of classes; None where the files decide.
        train, test: number of images; None where the files decide.
        summary: one line on the content and the source of the files.
        open_split: locates a split in a directory.
        needs_directory: whether `--data-dir` is required.
        splits: that `cktf datasets NAME` shows.
        unlabeled: whether it may have a split of images without labels.
    """

    name: str
    classes: int | None
    train: int | None
    test: int | None
    summary: str
    open_split: _OpenSplit
    needs_directory: bool = False
    splits: tuple[str, ...] = ("train", "test")
    unlabeled: bool = False


def _open_in_memory(load: Callable[[Path | None, str], ImageSet]) -> _OpenSplit:
    return lambda directory, split, _: source_from_image_set(load(directory, split), split)


FOLDER_PREFIX, HUB_PREFIX = "imagefolder", "hf"
_FOLDER = DatasetInfo(
    f"{FOLDER_PREFIX}:DIR", None, None, None,
    "a folder for each class, in DIR or in DIR/train and DIR/test", open_image_folder,
    unlabeled=True,
)  # fmt: skip
_HUB = DatasetInfo(
    f"{HUB_PREFIX}:NAME", None, None, None,
    "Hugging Face datasets (pip install 'cktf[hf]'), NAME of the Hub or a folder",
    partial(open_hub_dataset, "NAME"),
)  # fmt: skip
DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            "fashion-mini", 10, 10_000, 5_000,
            "15,000 images of Fashion-MNIST, inside this package",
            _open_in_memory(load_fashion_mini),
        ),
        DatasetInfo(
            "fashion-mnist", 10, 60_000, 10_000,
            "IDX files in --data-dir, or Debian's dataset-fashion-mnist",
            _open_in_memory(load_fashion_mnist),
        ),
        DatasetInfo(
            "cifar10", 10, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent",
            _open_in_memory(partial(load_cifar, CIFAR10_LAYOUT)), needs_directory=True,
        ),
        DatasetInfo(
            "cifar100", 100, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent",
            _open_in_memory(partial(load_cifar, CIFAR100_LAYOUT)), needs_directory=True,
        ),
        DatasetInfo(
            "stl10", 10, 5_000, 8_000, "stl10_binary in --data-dir; also the split unlabeled",
            open_stl10, needs_directory=True, splits=("train", "test", UNLABELED_SPLIT),
            unlabeled=True,
        ),
        DatasetInfo(
            "tiny-imagenet", 200, 100_000, 10_000, "tiny-imagenet-200 in --data-dir",
            open_tiny_imagenet, needs_directory=True,
        ),
        _FOLDER,
        _HUB,
    )
}  # fmt: skip


def get_dataset_info(name: str) -> DatasetInfo:
    """Look up a data set.

    Raises:
        DataError: unknown name.

    >>> get_dataset_info("cifar10").classes
    10
    """
    prefix, colon, location = name.partition(":")
    if prefix == FOLDER_PREFIX and not location:
        return replace(_FOLDER, name=name, needs_directory=True)
    if prefix == FOLDER_PREFIX:
        folder = expand_user_path(location)
        return replace(
            _FOLDER, name=name, open_split=lambda _, *rest: open_image_folder(folder, *rest)
        )
    if prefix == HUB_PREFIX and colon:
        return replace(_HUB, name=name, open_split=partial(open_hub_dataset, location))
    if name not in DATASETS:
        raise DataError(f"There is no data set {name!r}. {nearest(name, DATASETS)}")
    return DATASETS[name]


def resolve_dataset_name(name: str) -> str:
    """Make the folder in a name absolute, so that the name is valid in any working directory."""
    prefix, _, location = name.partition(":")
    is_folder = prefix == FOLDER_PREFIX or (prefix == HUB_PREFIX and is_saved_dataset(location))
    return f"{prefix}:{expand_user_path(location).absolute()}" if location and is_folder else name


def open_dataset(
    name: str, directory: Path | None, split: str, options: ReadOptions | None = None
) -> SplitSource:
    """Locate one split of a data set without reading its images.

    Raises:
        DataError: unknown name or split, or files that are missing or malformed.
    """
    info = get_dataset_info(name)
    directory = None if directory is None else expand_user_path(directory)
    if split == UNLABELED_SPLIT and not info.unlabeled:
        source = info.open_split(directory, "train", options or ReadOptions())
        return replace(source, labels=torch.full_like(source.labels, NO_LABEL), classes=())
    if split not in {*info.splits, UNLABELED_SPLIT}:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(info.splits)}.")
    return info.open_split(directory, split, options or ReadOptions())


def load_dataset(
    name: str, directory: Path | None, split: str, options: ReadOptions | None = None
) -> ImageSet[Images]:
    """Load one split of a data set: into memory, or if it is large, to be read batch by batch.

    Args:
        name: as `cktf datasets` lists it.
        directory: where its files are.
        split: "train", "test" or "unlabeled". STL-10 and folders have unlabeled images; for other
            data sets these are the training images without their labels.
        options: image size, treatment of broken images, memory budget.

    Raises:
        DataError: unknown name, or files that are missing or damaged.
    """
    return load_split(open_dataset(name, directory, split, options), options)


def load_splits(
    name: str, directory: Path | None, splits: Sequence[str], options: ReadOptions | None = None
) -> list[ImageSet[Images]]:
    """Load several splits; one error names the broken images of all of them.

    Raises:
        DataError: as `load_dataset`.
    """
    loaded, errors = [], []
    for split in splits:
        try:
            loaded.append(load_dataset(name, directory, split, options))
        except BrokenImagesError as error:
            errors.append(error)
    if errors:
        broken = [image for error in errors for image in error.broken]
        count = sum(map(len, loaded)) + sum(error.count for error in errors)
        raise BrokenImagesError(errors[0].name, broken, count)
    return loaded
