"""Data sets of the Hugging Face Hub or saved by `datasets` (extra `hf`)."""

import os
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from cktf.data.image_folder import MEAN, STD, TEST_FRACTION, choose_image_size
from cktf.data.registry import is_saved_dataset
from cktf.data.split_loading import ReadOptions, SplitSource, abbreviate
from cktf.data.splits import split_validation
from cktf.data.stored_images import StoredImages
from cktf.errors import DataError
from cktf.user_paths import expand_user_path

_TEST_SPLITS = ("test", "validation", "valid", "val")


def open_hub_dataset(
    name: str, directory: Path | None, split: str, options: ReadOptions
) -> SplitSource:
    """Locate one split, "train" or "test".

    The test split is `test`, or `validation` where `test` has no labels; without either, it is a
    fifth of each class of `train`, the same in every run.

    Args:
        name: a data set's name on the Hub, or a folder written by `save_to_disk`.
        directory: cache for downloads; None for the library's own.
        split: "train" or "test".
        options: how images are read.

    Raises:
        DataError: the library is not installed, the data set cannot be loaded, or has no column of
            images or of classes.
    """
    title = f"hf:{name}"
    splits = _load_splits(title, name, directory)
    if "train" not in splits:
        raise DataError(
            f"{title}: a split called train is required, found {', '.join(splits)}. Use another "
            "data set, or rename its splits and save it with save_to_disk."
        )
    train = splits["train"]
    image_column, label_column = _find_columns(title, train.features)
    classes = tuple(train.features[label_column].names)
    test, remark = _choose_test_split(title, splits, label_column, classes)
    if test is None:
        labels = _read_labels(title, "train", train, label_column, classes)
        remaining, held_out = split_validation(labels, TEST_FRACTION, 0, classes)
        train, test = train.select(remaining.numpy()), train.select(held_out.numpy())
    note = f"images from {image_column!r}, classes from {label_column!r}; {remark}"
    size = options.image_size
    if size is None:
        size, reason = choose_image_size(_EncodedImages(train, image_column, "train"))
        note += f"; {reason}"
    table = train if split == "train" else test
    labels = _read_labels(title, split, table, label_column, classes)
    stored = _EncodedImages(table, image_column, split)
    note = note if split == "train" else ""
    return SplitSource(title, split, stored, labels, classes, MEAN, STD, size, note=note)


def _load_splits(title: str, name: str, directory: Path | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{title} is read by the package datasets, which is not installed. Install the extra "
            "hf: pip install 'cktf[hf]'."
        ) from error
    if not name:
        raise DataError("hf needs a name: hf:NAME, of a data set on the Hub or of a folder.")
    try:
        if is_saved_dataset(name):
            loaded = datasets.load_from_disk(os.fspath(expand_user_path(name)))
        else:
            loaded = datasets.load_dataset(name, cache_dir=directory and os.fspath(directory))
    except Exception as error:  # the library passes on errors of networks, formats and scripts
        raise DataError(
            f"{title} cannot be loaded ({type(error).__name__}: {error}). Look up its name on "
            "huggingface.co/datasets; a folder must be one that save_to_disk wrote."
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _find_columns(title: str, features: Any) -> tuple[str, str]:
    """The column of images, and that of classes: `label`, or the one with the most classes."""
    images = [c for c, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [c for c, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if len(images) != 1 or not labels:
        columns = ", ".join(f"{c} ({type(kind).__name__})" for c, kind in features.items())
        raise DataError(
            f"{title}: one column of type Image and one of type ClassLabel are required; its "
            f"columns are {columns}. Cast them (cast_column; class_encode_column before it is "
            "split), drop additional ones, and save it with save_to_disk."
        )
    finest = max(labels, key=lambda column: len(features[column].names))
    return images[0], "label" if "label" in labels else finest


def _choose_test_split(
    title: str, splits: dict[str, Any], label_column: str, classes: tuple[str, ...]
) -> tuple[Any, str]:
    """The first test split that has labels, or None; and a remark for the log."""
    for split in _TEST_SPLITS:
        if split in splits and label_column in splits[split].features:
            labels = _read_labels(title, split, splits[split], label_column, classes)
            if bool((labels >= 0).any()):
                return splits[split], f"tested on {split}"
    return None, "a fifth of each class of train held out for the test"


def _read_labels(
    title: str, split: str, table: Any, label_column: str, classes: tuple[str, ...]
) -> Tensor:
    """Labels [N] in the numbering of the training split; -1 where the data set has none."""
    names = getattr(table.features.get(label_column), "names", None)
    if names is None or not set(names) <= set(classes):
        found = "none" if names is None else abbreviate(sorted(set(names) - set(classes)))
        raise DataError(
            f"{title}: the classes of {split} in {label_column!r} must be among those of train; "
            f"found: {found}. Cast that column to train's ClassLabel (cast_column) and save it "
            "with save_to_disk."
        )
    values = table.select_columns([label_column]).with_format("arrow")[:][label_column].to_pylist()
    missing = [i for i, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"{title}: every image has a label; {len(missing):,} of {split} have none, the first "
            f"is number {missing[0]}. Filter them out and save it with save_to_disk."
        )
    # Splits that were encoded separately number their classes differently.
    new_labels = torch.tensor([*map(classes.index, names), -1])
    return new_labels[torch.from_numpy(np.asarray(values, dtype=np.int64))]


@final
class _EncodedImages(StoredImages):
    """Image files in the rows of a table."""

    def __init__(self, table: Any, column: str, title: str) -> None:
        import datasets

        images = table.select_columns([column])
        self.table = images.cast_column(column, datasets.Image(decode=False))
        self.column, self.title = column, title

    def __len__(self) -> int:
        return len(self.table)

    def read(self, position: int) -> Path | bytes:
        """The file's bytes, or its path."""
        row = self.table[position][self.column]
        if row is None or (row["bytes"] is None and not row["path"]):
            raise ValueError("there is no image in this row")
        return Path(row["path"]) if row["bytes"] is None else bytes(row["bytes"])

    def image_name(self, position: int) -> str:
        """The split and row, and the file's name where it is known."""
        path = (self.table[position][self.column] or {}).get("path")
        return f"{self.title}[{position}]" + (f" {path}" if path else "")
