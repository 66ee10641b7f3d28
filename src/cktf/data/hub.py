"""Data sets of the Hugging Face Hub, or saved by its library, through `datasets` (extra `hf`)."""

import os
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cktf.data.image_decoding import open_image_file
from cktf.data.image_folder import MEAN, STD, TEST_FRACTION, usual_size
from cktf.data.split_loading import ReadOptions, SplitSource, abbreviate
from cktf.data.splits import split_validation
from cktf.data.stored_images import StoredImages
from cktf.errors import DataError
from cktf.user_paths import expand_user_path

_TESTS = ("test", "validation", "valid", "val")


def open_hub_dataset(
    name: str, directory: Path | None, split: str, reading: ReadOptions
) -> SplitSource:
    """One split, "train" or "test", of the data set NAME.

    NAME is a name of the Hub, whose files go to `directory` or the library's cache, or a folder
    that `save_to_disk` wrote. The test split is `test`, or `validation` where that has no labels;
    without either, a fifth of each class of `train`, the same for every run.

    Raises:
        DataError: the library is not installed, the data set cannot be loaded, or has no column of
            images or of classes.
    """
    title = f"hf:{name}"
    splits = _splits(title, name, directory)
    if "train" not in splits:
        raise DataError(
            f"{title}: a split called train is needed, found {', '.join(splits)}. Give another "
            "data set, or rename its splits and save it with save_to_disk."
        )
    image, label = _columns(title, splits["train"].features)
    classes = tuple(splits["train"].features[label].names)
    test, tested = _test(title, splits, label, classes)
    train = splits["train"]
    if test is None:
        kept, held = split_validation(
            _labels(title, "train", train, label, classes), TEST_FRACTION, seed=0
        )
        train, test = train.select(kept.numpy()), train.select(held.numpy())
    note = f"images from {image!r}, classes from {label!r}; {tested}"
    size = reading.image_size
    if size is None:
        size, said = usual_size(_Encoded(train, image, "train"))
        note += f"; {said}"
    chosen = train if split == "train" else test
    labels = _labels(title, split, chosen, label, classes)
    pictures = _Encoded(chosen, image, split)
    note = note if split == "train" else ""
    return SplitSource(title, split, pictures, labels, classes, MEAN, STD, size, note=note)


def is_saved(name: str) -> bool:
    """Whether a name is of a folder that `save_to_disk` wrote."""
    return any(
        os.path.isfile(expand_user_path(name) / f) for f in ("dataset_dict.json", "state.json")
    )


def _splits(title: str, name: str, directory: Path | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{title} is read by the package datasets, which is not installed. Install the extra "
            "hf: pip install 'cktf[hf]'."
        ) from error
    if not name:
        raise DataError("hf needs a name: hf:NAME, as of the Hub, or of a folder.")
    try:
        if is_saved(name):
            found = datasets.load_from_disk(os.fspath(expand_user_path(name)))
        else:
            found = datasets.load_dataset(name, cache_dir=directory and os.fspath(directory))
    except Exception as error:  # network, formats, scripts: the library lets through what it meets
        raise DataError(
            f"{title} cannot be loaded ({type(error).__name__}: {error}). Look up its name on "
            "huggingface.co/datasets; a folder is one that save_to_disk wrote."
        ) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _columns(title: str, features: Any) -> tuple[str, str]:
    """The column of images, and that of classes; of several of these `label`, or the finest."""
    images = [c for c, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [c for c, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if len(images) != 1 or not labels:
        columns = ", ".join(f"{c} ({type(kind).__name__})" for c, kind in features.items())
        raise DataError(
            f"{title}: one column of type Image and one of type ClassLabel are needed; its columns "
            f"are {columns}. Cast them (cast_column; class_encode_column before it is split), drop "
            "what is too many, and save it with save_to_disk."
        )
    finest = max(labels, key=lambda column: len(features[column].names))
    return images[0], "label" if "label" in labels else finest


def _test(
    title: str, splits: dict[str, Any], label: str, classes: tuple[str, ...]
) -> tuple[Any, str]:
    """The first split to test on that has labels."""
    for split in _TESTS:
        if split in splits and label in splits[split].features:
            labels = _labels(title, split, splits[split], label, classes)
            if bool((labels >= 0).any()):
                return splits[split], f"tested on {split}"
    return None, "a fifth of each class of train held out for the test"


def _labels(title: str, split: str, data: Any, label: str, classes: tuple[str, ...]) -> Tensor:
    """Numbers [N] of the training split's classes, whatever a split's own are; -1 for none."""
    own = getattr(data.features.get(label), "names", None)
    if own is None or not set(own) <= set(classes):
        found = "there are none" if own is None else abbreviate(sorted(set(own) - set(classes)))
        raise DataError(
            f"{title}: {split} has classes in {label!r} of those that train has; found: {found}. "
            "Cast that column to train's ClassLabel (cast_column) and save it with save_to_disk."
        )
    values = data.select_columns([label]).with_format("arrow")[:][label].to_pylist()
    missing = [i for i, value in enumerate(values) if value is None]
    if missing:
        raise DataError(
            f"{title}: every image has a label; {len(missing):,} of {split} have none, the first "
            f"is number {missing[0]}. Filter them out and save it with save_to_disk."
        )
    # Where each split was encoded by itself, the same number is another class.
    numbers = torch.tensor([*map(classes.index, own), -1])
    return numbers[torch.from_numpy(np.asarray(values, dtype=np.int64))]


@final
class _Encoded(StoredImages):
    """Images as files in the rows of a table."""

    def __init__(self, data: Any, column: str, title: str) -> None:
        import datasets

        self.data = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.title = column, title

    def __len__(self) -> int:
        return len(self.data)

    def open(self, position: int) -> Image.Image:
        """One image, its header read."""
        return open_image_file(self._stored(position))

    def name(self, position: int) -> str:
        """Its row, and its file's name where that is known."""
        path = (self.data[position][self.column] or {}).get("path")
        return f"{self.title}[{position}]" + (f" {path}" if path else "")

    def tail(self, position: int) -> bytes:
        """The last bytes of its file."""
        stored = self._stored(position)
        return stored[-64:] if isinstance(stored, bytes) else stored.read_bytes()[-64:]

    @property
    def size(self) -> None:
        """Each has its own."""

    def whole(self) -> None:
        """They are not stored as pixels."""

    def _stored(self, position: int) -> bytes | Path:
        row = self.data[position][self.column]
        if row is None or (row["bytes"] is None and not row["path"]):
            raise ValueError("there is no image in this row")
        return Path(row["path"]) if row["bytes"] is None else bytes(row["bytes"])
