"""Data sets by name: `cifar100`, `imagefolder:DIR`, `table:FILE`, `hf:NAME`."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cktf.errors import DataError, PathError, nearest
from cktf.first_use import call_later
from cktf.user_paths import expand_user_path

if TYPE_CHECKING:
    from cktf.data.image_set import Images, ImageSet
    from cktf.data.split_loading import ReadOptions, SplitSource

_OpenSplit = Callable[[Path | None, str, "ReadOptions"], "SplitSource"]
_FindSplits = Callable[[Path | None, "ReadOptions"], tuple[str, ...]]


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
        find_splits: looks up the splits, where the files decide.
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
    find_splits: _FindSplits | None = None


def _open_in_memory(load: str) -> _OpenSplit:
    """Return a function that opens a split by a loader `module:name`, which it imports."""
    load_set = call_later(load)
    make_source = call_later("cktf.data.split_loading:source_from_image_set")
    return lambda directory, split, _: make_source(load_set(directory, split), split)


_open_image_folder = call_later("cktf.data.image_folder:open_image_folder")
_find_image_folder_splits = call_later("cktf.data.image_folder:find_image_folder_splits")
_open_hub_dataset = call_later("cktf.data.hub:open_hub_dataset")
_find_hub_splits = call_later("cktf.data.hub:find_hub_splits")
_open_table_file = call_later("cktf.data.table_files:open_table_file")
_find_table_file_splits = call_later("cktf.data.table_files:find_table_file_splits")
FOLDER_PREFIX, TABLE_PREFIX, HUB_PREFIX = "imagefolder", "table", "hf"
TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet")
_FOLDER = DatasetInfo(
    f"{FOLDER_PREFIX}:DIR", None, None, None,
    "a folder for each class, in DIR or in DIR/train and DIR/test", _open_image_folder,
    unlabeled=True, find_splits=_find_image_folder_splits,
)  # fmt: skip
_TABLE = DatasetInfo(
    f"{TABLE_PREFIX}:FILE", None, None, None,
    "a .csv, .tsv or .parquet file with columns image, label and, optionally, split",
    _open_table_file, find_splits=_find_table_file_splits,
)  # fmt: skip
_HUB = DatasetInfo(
    f"{HUB_PREFIX}:NAME", None, None, None,
    "Hugging Face datasets (extra hf), NAME of the Hub or a folder",
    partial(_open_hub_dataset, "NAME"), find_splits=partial(_find_hub_splits, "NAME"),
)  # fmt: skip
DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            "fashion-mini", 10, 10_000, 5_000,
            "15,000 images of Fashion-MNIST, inside this package",
            _open_in_memory("cktf.data.fashion:load_fashion_mini"),
        ),
        DatasetInfo(
            "fashion-mnist", 10, 60_000, 10_000,
            "IDX files in --data-dir, or Debian's dataset-fashion-mnist",
            _open_in_memory("cktf.data.fashion:load_fashion_mnist"),
        ),
        DatasetInfo(
            "cifar10", 10, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent",
            _open_in_memory("cktf.data.cifar:load_cifar10"), needs_directory=True,
        ),
        DatasetInfo(
            "cifar100", 100, 50_000, 10_000,
            "binary or Python layout in --data-dir; downloaded if absent",
            _open_in_memory("cktf.data.cifar:load_cifar100"), needs_directory=True,
        ),
        DatasetInfo(
            "stl10", 10, 5_000, 8_000, "stl10_binary in --data-dir; also the split unlabeled",
            call_later("cktf.data.stl10:open_stl10"), needs_directory=True,
            splits=("train", "test", "unlabeled"),
            unlabeled=True,
        ),
        DatasetInfo(
            "tiny-imagenet", 200, 100_000, 10_000, "tiny-imagenet-200 in --data-dir",
            call_later("cktf.data.tiny_imagenet:open_tiny_imagenet"), needs_directory=True,
        ),
        _FOLDER,
        _TABLE,
        _HUB,
    )
}  # fmt: skip


def get_dataset_info(name: str) -> DatasetInfo:
    """Look up a data set; a folder or a table that is there stands for its images.

    Raises:
        DataError: unknown name.

    >>> get_dataset_info("cifar10").classes
    10
    """
    name = resolve_dataset_name(name)
    prefix, colon, location = name.partition(":")
    if prefix == FOLDER_PREFIX and not location:
        return replace(_FOLDER, name=name, needs_directory=True)
    if prefix == FOLDER_PREFIX:
        folder = Path(location)
        return replace(
            _FOLDER,
            name=name,
            open_split=lambda _, *rest: _open_image_folder(folder, *rest),
            find_splits=lambda _, options: _find_image_folder_splits(folder, options),
        )
    if prefix == TABLE_PREFIX and colon:
        file = Path(location) if location else None
        return replace(
            _TABLE,
            name=name,
            open_split=lambda _, *rest: _open_table_file(file, *rest),
            find_splits=lambda _, options: _find_table_file_splits(file, options),
        )
    if prefix == HUB_PREFIX and colon:
        return replace(
            _HUB,
            name=name,
            open_split=partial(_open_hub_dataset, location),
            find_splits=partial(_find_hub_splits, location),
        )
    if name not in DATASETS:
        if expand_user_path(name).is_file():
            raise DataError(
                f"{name} is a file, and images are read from a folder. If it is an archive, "
                "extract it and give the folder."
            )
        raise DataError(f"There is no data set {name!r}, and no folder. {nearest(name, DATASETS)}")
    return DATASETS[name]


def is_saved_dataset(name: str) -> bool:
    """Whether a name is that of a folder written by `save_to_disk` of Hugging Face's `datasets`."""
    files = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(expand_user_path(name) / file) for file in files)


def resolve_dataset_name(name: str) -> str:
    """Make the path in a name absolute, so that the name is valid in any working directory.

    A folder alone, `photos`, stands for `imagefolder:photos`, unless it is called like a data set,
    and the file of a table, `photos.csv`, for `table:photos.csv`.
    """
    prefix, _, location = name.partition(":")
    is_saved = prefix == HUB_PREFIX and is_saved_dataset(location)
    if prefix in (FOLDER_PREFIX, TABLE_PREFIX) or is_saved:
        return f"{prefix}:{expand_user_path(location).absolute()}" if location else name
    if name not in DATASETS and prefix != HUB_PREFIX and _is_folder(name):
        return f"{FOLDER_PREFIX}:{expand_user_path(name).absolute()}"
    if prefix == name and name.lower().endswith(TABLE_EXTENSIONS):
        return f"{TABLE_PREFIX}:{expand_user_path(name).absolute()}"
    return name


def _is_folder(name: str) -> bool:
    with suppress(PathError, OSError, ValueError):
        return bool(name) and expand_user_path(name).is_dir()
    return False


def find_hidden_folder(name: str, directory: Path | None) -> str:
    """Say that a data set has the name of a folder, which is not read; empty without such a folder.

    Args:
        name: of the data set.
        directory: where its files are; a folder of its name is usually this one.
    """
    if name not in DATASETS or directory is not None or not _is_folder(name):
        return ""
    return f"{name} is the library's data set, not the folder {name}, which is ./{name}"


def list_splits(
    name: str, directory: Path | None, options: "ReadOptions | None" = None
) -> tuple[str, ...]:
    """List the splits of a data set that have labels or that it alone has.

    Raises:
        DataError: unknown name, or a folder without images.
    """
    from cktf.data.split_loading import ReadOptions

    info = get_dataset_info(name)
    if info.find_splits is None:
        return info.splits
    directory = None if directory is None else expand_user_path(directory)
    return info.find_splits(directory, options or ReadOptions())


def is_among_images(name: str, directory: str | None, path: Path) -> bool:
    """Whether files at a path would be read as images of a data set that is a folder."""
    prefix, _, location = name.partition(":")
    if prefix != FOLDER_PREFIX or not (location or directory):
        return False
    from cktf.data.image_folder import SPLIT_NAMES
    from cktf.data.image_set import UNLABELED_SPLIT

    folder, path = expand_user_path(location or directory or "").resolve(), path.resolve()
    if not folder.is_dir() or not path.is_relative_to(folder):
        return False
    folders = {child.name.casefold() for child in folder.iterdir()}
    first = next(iter(path.relative_to(folder).parts), UNLABELED_SPLIT).casefold()
    # Beside a folder of training images, other folders than splits are not read.
    splits = {UNLABELED_SPLIT}.union(*SPLIT_NAMES.values())
    is_read = folders.isdisjoint(SPLIT_NAMES["train"]) or first in splits
    return is_read and not first.startswith(".")


def open_dataset(
    name: str, directory: Path | None, split: str, options: "ReadOptions | None" = None
) -> "SplitSource":
    """Locate one split of a data set without reading its images.

    Raises:
        DataError: unknown name or split, or files that are missing or malformed.
    """
    from cktf.data.image_set import UNLABELED_SPLIT, VALIDATION_SPLIT
    from cktf.data.split_loading import ReadOptions

    info = get_dataset_info(name)
    directory = None if directory is None else expand_user_path(directory)
    if split == UNLABELED_SPLIT and not info.unlabeled:
        return info.open_split(directory, "train", options or ReadOptions()).without_labels()
    known = {*info.splits, UNLABELED_SPLIT} | ({VALIDATION_SPLIT} if info.find_splits else set())
    if split not in known:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(info.splits)}.")
    return info.open_split(directory, split, options or ReadOptions())


def load_dataset(
    name: str, directory: Path | None, split: str, options: "ReadOptions | None" = None
) -> "ImageSet[Images]":
    """Load one split of a data set: into memory, or if it is large, to be read batch by batch.

    Args:
        name: as `cktf datasets` lists it.
        directory: where its files are.
        split: "train", "test", "unlabeled", or "validation" where `list_splits` names it. STL-10
            and folders have unlabeled images; for other data sets these are the training images
            without their labels.
        options: image size, treatment of broken images, memory budget.

    Raises:
        DataError: unknown name, or files that are missing or damaged.
    """
    from cktf.data.split_loading import load_split

    return load_split(open_dataset(name, directory, split, options), options)


def load_splits(
    name: str, directory: Path | None, splits: Sequence[str], options: "ReadOptions | None" = None
) -> "list[ImageSet[Images]]":
    """Load several splits; one error names the broken images of all of them.

    Raises:
        DataError: as `load_dataset`.
    """
    from cktf.data.split_loading import BrokenImagesError

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
