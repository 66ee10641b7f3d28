"""Tables with a column of images and a column of classes, one table for each split."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from cktf.data.image_folder import (
    MEAN,
    SPLIT_NAMES,
    STD,
    TEST_FRACTION,
    choose_image_size,
)
from cktf.data.image_set import NO_LABEL, VALIDATION_SPLIT
from cktf.data.split_loading import ReadOptions, SplitSource, abbreviate
from cktf.data.splits import split_by_name, split_validation
from cktf.data.stored_images import StoredImages
from cktf.errors import DataError, install_command, nearest

TRAIN_NAMES, TEST_NAMES = SPLIT_NAMES["train"], SPLIT_NAMES["test"]
VALIDATION_NAMES = SPLIT_NAMES[VALIDATION_SPLIT]
# Names of columns that are read without being asked for, the first that is there.
_IMAGE_NAMES = (
    "image", "img", "path", "image_path", "filepath", "file_path", "file", "filename", "file_name",
)  # fmt: skip
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category")
_NAMED_BY = "Name it by data.image_column and data.label_column (--set data.label_column=NAME)"


def import_datasets(title: str) -> Any:
    """Import the package `datasets`; DataError without it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{title} is read by the package datasets, which is not installed: "
            f"{install_command('hf')}."
        ) from error
    return datasets


def open_tables(
    title: str,
    tables: Mapping[str, Any],
    split: str,
    options: ReadOptions,
    folder: Path | None = None,
) -> SplitSource:
    """Locate one split, "train", "validation" or "test", of tables by the names of their splits.

    The test split is `test`, or a validation split where that has no labels; without either, it is
    a fifth of each class of the training split, the same in every run, or all of that split without
    `options.hold_out`.

    Args:
        title: the data set's name for users.
        tables: a `datasets.Dataset` for each split.
        split: "train" or "test", or "validation" where there is one.
        options: how images are read, and from which columns.
        folder: of the file that paths of images are relative to; images are then held out by their
            paths, as in image folders.

    Raises:
        DataError: no training split, or no column of images or of classes.
    """
    tables = {name: table.with_format(None) for name, table in tables.items()}
    train = find_name(tables, TRAIN_NAMES)
    if train is None and split == "test":
        # Test images alone can be evaluated.
        train = find_name(tables, (*TEST_NAMES, *VALIDATION_NAMES))
    if train is None or not len(tables[train]):
        raise DataError(
            f"{title}: a split with rows called train is required, and one called test (or val) is "
            f"used if it is there; found {abbreviate(list(tables)) or 'none'}. Rename the splits, "
            "as by datasets.DatasetDict({'train': …, 'test': …}).save_to_disk(…)."
        )
    image_column, label_column = _find_columns(title, tables[train].features, options)
    classes = _find_classes(title, train, tables[train], label_column)
    test, remark = _choose_test_split(title, tables, label_column, classes)
    names = {"train": train, "test": test, VALIDATION_SPLIT: find_name(tables, VALIDATION_NAMES)}
    parts = {part: tables[name] for part, name in names.items() if name is not None}
    # A data set of Hugging Face trains on the same images whatever it is tested on.
    if test is None and (options.hold_out or (folder is None and split == "train")):
        positions = _hold_out(title, train, parts["train"], image_column, label_column, folder)
        parts["train"], parts["test"] = (tables[train].select(p) for p in positions)
    elif test is None:
        parts["test"], remark = tables[train], ""
    stored = {
        part: _EncodedImages(title, table, image_column, names[part] or train, folder)
        for part, table in parts.items()
    }
    note = f"images from {image_column!r}, classes from {label_column!r}"
    note = f"{note}; {remark}" if remark else note
    size = options.image_size
    if size is None:
        size, reason = choose_image_size(stored["train"])
        note += f"; {reason}"
    labels = _read_labels(title, names[split] or train, parts[split], label_column, classes)
    note = note if split == "train" else ""
    return SplitSource(title, split, stored[split], labels, classes, MEAN, STD, size, note=note)


def find_table_splits(
    title: str, tables: Mapping[str, Any], options: ReadOptions
) -> tuple[str, ...]:
    """Names of the splits; "validation" is one of them if it has labels and is not the test split.

    The arguments are those of `open_tables`.
    """
    tables = {name: table.with_format(None) for name, table in tables.items()}
    train, validation = (find_name(tables, names) for names in (TRAIN_NAMES, VALIDATION_NAMES))
    if train is None or validation is None:
        return "train", "test"
    column = _find_columns(title, tables[train].features, options)[1]
    classes = _find_classes(title, train, tables[train], column)
    is_test = (
        options.hold_out and _choose_test_split(title, tables, column, classes)[0] == validation
    )
    if is_test or column not in tables[validation].features:
        return "train", "test"
    labels = _read_labels(title, validation, tables[validation], column, classes)
    has_labels = bool((labels != NO_LABEL).all())
    return ("train", VALIDATION_SPLIT, "test") if has_labels else ("train", "test")


def find_name(names: Iterable[str], aliases: Iterable[str]) -> str | None:
    """The first of the aliases, in lower case, that is among some names in any case."""
    by_lower_case = {name.casefold(): name for name in names}
    return next((by_lower_case[name] for name in aliases if name in by_lower_case), None)


def _find_columns(title: str, features: Any, options: ReadOptions) -> tuple[str, str]:
    """The columns of images and of classes: those of the options, else by type, else by name."""
    kinds = {column: type(kind).__name__ for column, kind in features.items()}
    for column in (options.image_column, options.label_column):
        if column is not None and column not in kinds:
            raise DataError(f"{title} has no column {column!r}. {nearest(column, kinds)}")
    images = [c for c, kind in kinds.items() if kind == "Image"]
    labels = [c for c, kind in kinds.items() if kind == "ClassLabel"]
    # Of several numberings, that with the most classes.
    labels.sort(key=lambda column: (column != "label", -len(features[column].names)))
    image_column = options.image_column or find_name(kinds, _IMAGE_NAMES)
    if options.image_column is None and images:
        image_column = images[0] if len(images) == 1 else None
    label_column = options.label_column or next(iter(labels), find_name(kinds, _LABEL_NAMES))
    if image_column is None or label_column is None:
        columns = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise DataError(
            f"{title}: one column of type Image and one of type ClassLabel are required, or "
            f"columns called image and label; its columns are {columns}. {_NAMED_BY}."
        )
    return image_column, label_column


def _find_classes(title: str, split: str, table: Any, column: str) -> tuple[str, ...]:
    """Names of the classes: of the column's type, else its values, in the order of numbers."""
    if (class_names := getattr(table.features[column], "names", None)) is not None:
        return tuple(class_names)
    names = set(_read_class_names(title, split, table, column))
    if len(names) < 2:
        raise DataError(
            f"{title}: two classes or more are needed; those of {split} in {column!r} are "
            f"{', '.join(names)}. {_NAMED_BY}."
        )
    return tuple(sorted(names, key=int if all(map(str.isdecimal, names)) else None))


def _choose_test_split(
    title: str, tables: Mapping[str, Any], column: str, classes: tuple[str, ...]
) -> tuple[str | None, str]:
    """The name of the first test split that has labels, or None; and a remark for the log."""
    for name in (*TEST_NAMES, *VALIDATION_NAMES):
        split = find_name(tables, (name,))
        if split is not None and column in tables[split].features:
            labels = _read_labels(title, split, tables[split], column, classes)
            if bool((labels >= 0).any()):
                return split, f"tested on {split}"
    return None, "a fifth of each class of train held out for the test"


def _read_labels(
    title: str, split: str, table: Any, column: str, classes: tuple[str, ...]
) -> Tensor:
    """Labels [N] in the numbering of the training split; -1 where the data set has none."""
    names = _read_class_names(title, split, table, column)
    unknown = set(getattr(table.features[column], "names", names)) - set(classes)
    if unknown:
        found = abbreviate(sorted(unknown))
        raise DataError(
            f"{title}: the classes of {split} in {column!r} must be among those of train; found: "
            f"{found}. Give both splits the same names of classes."
        )
    # Splits that were encoded separately number their classes differently.
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers.get(name, NO_LABEL) for name in names], device="cpu")


def _read_class_names(title: str, split: str, table: Any, column: str) -> list[str]:
    """The name of each row's class; empty where a ClassLabel is -1."""
    values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    missing = [i for i, value in enumerate(values) if value in (None, "") or value != value]
    if missing:
        raise DataError(
            f"{title}: every image has a label; {len(missing):,} of {split} have none, the first "
            f"is number {missing[0]}. Leave these rows out."
        )
    class_names = getattr(table.features[column], "names", None)
    if class_names is not None:
        return [class_names[value] if value >= 0 else "" for value in values]
    names = [
        str(int(value)) if isinstance(value, int | float) and value == int(value) else str(value)
        for value in values
    ]
    numbers = [re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names]
    if not all(isinstance(v, str | int | float) for v in values) or (
        all(numbers) and not all(map(str.isdecimal, names))
    ):
        unfit = next((n for n in names if not n.isdecimal()), names[0])
        raise DataError(
            f"{title}: labels are names of classes, or their numbers from 0; {column!r} of {split} "
            f"has {unfit[:100]}. Fractions (regression), several labels for an image (multi-label) "
            f"and numbers below 0 are not supported. {_NAMED_BY}, or change the labels."
        )
    return names


def _hold_out(
    title: str, split: str, table: Any, image_column: str, label_column: str, folder: Path | None
) -> list[Any]:
    """Positions for training and for the test, chosen by path or, without a folder, by number."""
    classes = _find_classes(title, split, table, label_column)
    labels = _read_labels(title, split, table, label_column, classes)
    if folder is None:
        return [part.numpy() for part in split_validation(labels, TEST_FRACTION, 0, classes)]
    if single := [classes[k] for k, count in enumerate(labels.bincount()) if count == 1]:
        raise DataError(
            f"{title}: to hold out a test split, each class needs two images or more; one in "
            f"{abbreviate(single)}. Add images, or a column split with train and test."
        )
    images = _EncodedImages(title, table, image_column, split, folder)
    names = [images.relative_path(i) or f"row {i}" for i in range(len(images))]
    return [part.numpy() for part in split_by_name(labels, names, TEST_FRACTION)]


@final
class _EncodedImages(StoredImages):
    """Image files in the rows of a table, or the paths of files."""

    def __init__(
        self, title: str, table: Any, column: str, split: str, folder: Path | None
    ) -> None:
        import datasets

        images = table.select_columns([column])
        try:
            self.table = images.cast_column(column, datasets.Image(decode=False))
        except Exception as error:  # the library passes on errors of Arrow
            raise DataError(
                f"{title}: images are files, their bytes or their paths; {column!r} of {split} is "
                f"{table.features[column]}. Name another column by data.image_column."
            ) from error
        self.column, self.split, self.folder = column, split, folder or Path()

    def __len__(self) -> int:
        return len(self.table)

    def read(self, position: int) -> Path | bytes:
        """The file's bytes, or its path."""
        row = self.table[position][self.column]
        if row is None or (row["bytes"] is None and not row["path"]):
            raise ValueError("there is no image in this row")
        if row["bytes"] is not None:
            return bytes(row["bytes"])
        path: Path = self.folder / row["path"]
        if not path.exists():
            # Windows separates folders otherwise.
            path = self.folder / row["path"].replace("\\", "/")
        if not path.exists():
            raise ValueError(f"there is no such file in {self.folder.absolute()}")
        return path

    def relative_path(self, position: int) -> str:
        """The file's path or name as the table has it; empty without any."""
        return os.fspath((self.table[position][self.column] or {}).get("path") or "")

    def image_name(self, position: int) -> str:
        """The split and row, and the file's name where it is known."""
        path = self.relative_path(position)
        return f"{self.split}[{position}]" + (f" {path}" if path else "")
