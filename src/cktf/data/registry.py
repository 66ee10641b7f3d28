"""Data sets by name, and by name and place: `imagefolder:DIR`, `hf:NAME`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from cktf.data.cifar import load_cifar10, load_cifar100
from cktf.data.fashion import load_fashion_mini, load_fashion_mnist
from cktf.data.hub import is_saved, open_hub_dataset
from cktf.data.image_folder import open_image_folder
from cktf.data.image_set import NO_LABEL, UNLABELED_SPLIT, Images, ImageSet
from cktf.data.split_loading import (
    BrokenImagesError,
    ReadOptions,
    SplitSource,
    read,
    source_from_arrays,
)
from cktf.data.stl10 import open_stl10
from cktf.data.tiny_imagenet import open_tiny_imagenet
from cktf.errors import DataError, nearest
from cktf.user_paths import expand_user_path

_Open = Callable[[Path | None, str, ReadOptions], SplitSource]


@dataclass(frozen=True)
class DatasetInfo:
    """One data set that can be named.

    Attributes:
        name: what users call it.
        classes: how many classes it has; None where its files decide.
        train, test: how many images; None where its files decide.
        summary: one line on what it is and where its files come from.
        needs_directory: whether `--data-dir` must be given.
        open: finds "train", "test" or another split in a directory.
        splits: what `cktf datasets` shows.
        unlabeled: whether it may have images for which nobody has labels.
    """

    name: str
    classes: int | None
    train: int | None
    test: int | None
    summary: str
    needs_directory: bool
    open: _Open
    splits: tuple[str, ...] = ("train", "test")
    unlabeled: bool = False


def _whole(load: Callable[[Path | None, str], ImageSet]) -> _Open:
    """For a small data set that is read as it is."""
    return lambda directory, split, _: source_from_arrays(load(directory, split), split)


FOLDER_PREFIX, HUB_PREFIX = "imagefolder", "hf"
DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            "fashion-mini", 10, 10_000, 5_000,
            "15,000 images of Fashion-MNIST, inside this package", False, _whole(load_fashion_mini),
        ),
        DatasetInfo(
            "fashion-mnist", 10, 60_000, 10_000,
            "IDX files in --data-dir, or Debian's dataset-fashion-mnist", False,
            _whole(load_fashion_mnist),
        ),
        DatasetInfo(
            "cifar10", 10, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent", True,
            _whole(load_cifar10),
        ),
        DatasetInfo(
            "cifar100", 100, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent", True,
            _whole(load_cifar100),
        ),
        DatasetInfo(
            "stl10", 10, 5_000, 8_000,
            "stl10_binary in --data-dir; also the split unlabeled", True, open_stl10,
            ("train", "test", UNLABELED_SPLIT), unlabeled=True,
        ),
        DatasetInfo(
            "tiny-imagenet", 200, 100_000, 10_000,
            "tiny-imagenet-200 in --data-dir", True, open_tiny_imagenet,
        ),
        DatasetInfo(
            f"{FOLDER_PREFIX}:DIR", None, None, None,
            "a folder for each class, in DIR or in DIR/train and DIR/test", False,
            open_image_folder, unlabeled=True,
        ),
        DatasetInfo(
            f"{HUB_PREFIX}:NAME", None, None, None,
            "Hugging Face datasets (pip install 'cktf[hf]'), NAME of the Hub or a folder", False,
            partial(open_hub_dataset, "NAME"),
        ),
    )
}  # fmt: skip


def get_dataset_info(name: str) -> DatasetInfo:
    """What is known of a data set.

    Raises:
        DataError: unknown name.

    >>> get_dataset_info("cifar10").classes
    10
    """
    kind, colon, place = name.partition(":")
    if kind == FOLDER_PREFIX:
        known = DATASETS[f"{FOLDER_PREFIX}:DIR"]
        root = expand_user_path(place)
        opens: _Open = lambda directory, split, reading: open_image_folder(  # noqa: E731
            root if place else directory, split, reading
        )
        return DatasetInfo(
            name, None, None, None, known.summary, needs_directory=not place, open=opens,
            unlabeled=True,
        )  # fmt: skip
    if kind == HUB_PREFIX and colon:
        known = DATASETS[f"{HUB_PREFIX}:NAME"]
        return DatasetInfo(
            name, None, None, None, known.summary, False, partial(open_hub_dataset, place)
        )
    if name not in DATASETS:
        raise DataError(f"There is no data set {name!r}. {nearest(name, DATASETS)}")
    return DATASETS[name]


def resolve_dataset_name(name: str) -> str:
    """The same name, its folder by an absolute path, so that it means the same in any folder."""
    kind, _, place = name.partition(":")
    if place and (kind == FOLDER_PREFIX or (kind == HUB_PREFIX and is_saved(place))):
        return f"{kind}:{expand_user_path(place).absolute()}"
    return name


def open_dataset(
    name: str, directory: Path | None, split: str, reading: ReadOptions | None = None
) -> SplitSource:
    """Find one split of a named data set, without reading its images.

    Raises:
        DataError: unknown name or split, or files that are missing or not as they should be.
    """
    info = get_dataset_info(name)
    directory = None if directory is None else expand_user_path(directory)
    if split == UNLABELED_SPLIT and not info.unlabeled:
        source = info.open(directory, "train", reading or ReadOptions())
        return replace(source, labels=torch.full_like(source.labels, NO_LABEL), classes=())
    if split not in {*info.splits, UNLABELED_SPLIT}:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(info.splits)}.")
    return info.open(directory, split, reading or ReadOptions())


def load_dataset(
    name: str, directory: Path | None, split: str, reading: ReadOptions | None = None
) -> ImageSet[Images]:
    """Read one split of a named data set: into memory, or, if it is large, for reading by batches.

    Args:
        name: as `cktf datasets` lists it.
        directory: where its files are.
        split: "train", "test"; "unlabeled": images for which nobody has labels (STL-10 and folders
            have them), or else the training images without theirs.
        reading: size of the images, what to do with broken ones, and how much memory to use.

    Raises:
        DataError: unknown name, or files that are missing or damaged.
    """
    return read(open_dataset(name, directory, split, reading), reading)


def load_splits(
    name: str, directory: Path | None, splits: Sequence[str], reading: ReadOptions | None = None
) -> list[ImageSet[Images]]:
    """Read several splits; what is broken in any of them is named in one error.

    Raises:
        DataError: as `load_dataset`.
    """
    loaded, broken = [], []
    for split in splits:
        try:
            loaded.append(load_dataset(name, directory, split, reading))
        except BrokenImagesError as error:
            broken.append(error)
    if broken:
        found = [image for error in broken for image in error.found]
        whole = sum(len(data) for data in loaded)
        raise BrokenImagesError(broken[0].name, found, whole + sum(error.count for error in broken))
    return loaded
