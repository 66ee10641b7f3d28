"""Data sets of the Hugging Face Hub or saved by `datasets` (extra `hf`)."""

import os
from pathlib import Path
from typing import Any

from cktf.data.image_tables import find_table_splits, import_datasets, open_tables
from cktf.data.registry import is_saved_dataset
from cktf.data.split_loading import ReadOptions, SplitSource
from cktf.errors import DataError
from cktf.user_paths import expand_user_path


def open_hub_dataset(
    name: str, directory: Path | None, split: str, options: ReadOptions
) -> SplitSource:
    """Locate one split, "train", "test", or "validation" where `find_hub_splits` names it.

    See `image_tables.open_tables`.

    Args:
        name: a data set's name on the Hub, or a folder written by `save_to_disk`.
        directory: cache for downloads; None for the library's own.
        split: which.
        options: how images are read, and from which columns.

    Raises:
        DataError: the library is not installed, the data set cannot be loaded, or has no column of
            images or of classes.
    """
    title = f"hf:{name}"
    return open_tables(title, _load_splits(title, name, directory), split, options)


def find_hub_splits(name: str, directory: Path | None, options: ReadOptions) -> tuple[str, ...]:
    """Names of the splits; see `image_tables.find_table_splits`."""
    title = f"hf:{name}"
    return find_table_splits(title, _load_splits(title, name, directory), options)


def _load_splits(title: str, name: str, directory: Path | None) -> dict[str, Any]:
    datasets = import_datasets(title)
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
