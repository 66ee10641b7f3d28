"""A table of images in a file: CSV with paths, or Parquet with paths or the files themselves."""

import csv
from pathlib import Path
from typing import Any

from cktf.data.image_tables import (
    TEST_NAMES,
    TRAIN_NAMES,
    VALIDATION_NAMES,
    find_name,
    find_table_splits,
    import_datasets,
    open_tables,
)
from cktf.data.registry import TABLE_EXTENSIONS
from cktf.data.split_loading import ReadOptions, SplitSource
from cktf.errors import DataError


def open_table_file(path: Path | None, split: str, options: ReadOptions) -> SplitSource:
    """Locate one split, "train", "validation" or "test", of a table.

    A column `split`, if there is one, says of each row which it belongs to; else a fifth of each
    class is the test split, chosen by the paths of images.

    Raises:
        DataError: no such file, a file that cannot be read, or columns that do not fit.
    """
    title, tables = _read_tables(path)
    assert path is not None
    return open_tables(title, tables, split, options, path.parent)


def find_table_file_splits(path: Path | None, options: ReadOptions) -> tuple[str, ...]:
    """Names of the splits; "validation" is one of them if it does not serve as the test.

    Raises:
        DataError: no such file, or one that cannot be read.
    """
    return find_table_splits(*_read_tables(path), options)


def _read_tables(path: Path | None) -> tuple[str, dict[str, Any]]:
    """The title of a table, and its rows by split."""
    if path is None:
        raise DataError("table needs a file: table:FILE, of .csv, .tsv or .parquet.")
    title = f"table:{path}"
    if path.suffix.lower() not in TABLE_EXTENSIONS:
        raise DataError(f"{title}: a table is a file whose name ends in .csv, .tsv or .parquet.")
    if not path.is_file():
        raise DataError(f"{title}: there is no such file. Check the path.")
    datasets = import_datasets(title)
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet

            table = datasets.Dataset(parquet.read_table(path, memory_map=True))
        else:
            table = datasets.Dataset.from_dict(_read_csv(path))
    except Exception as error:  # the libraries raise errors of many types
        raise DataError(
            f"{title} cannot be read ({type(error).__name__}: {error}). A CSV file is text in "
            "UTF-8, with the names of the columns in its first line."
        ) from error
    if not len(table):
        raise DataError(f"{title} has no rows. Give one for each image, below the column names.")
    return title, _split_rows(title, table)


def _split_rows(title: str, table: Any) -> dict[str, Any]:
    """The rows of each split, by its name in lower case."""
    column = find_name(table.column_names, ["split"])
    if column is None:
        return {"train": table}
    names = [str(name or "").strip().casefold() for name in table[column]]
    if unknown := sorted(set(names) - {*TRAIN_NAMES, *VALIDATION_NAMES, *TEST_NAMES}):
        raise DataError(
            f"{title}: a row's {column} is train, val or test; found {unknown[0]!r} in "
            f"{names.count(unknown[0]):,} rows. Correct them, or rename the column."
        )
    return {
        name: table.select([i for i, other in enumerate(names) if other == name])
        for name in dict.fromkeys(names)
    }


def _read_csv(path: Path) -> dict[str, list[Any]]:
    """Columns of text, separated by the one of comma, semicolon and tab that the header has."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=max(",;\t", key=header.count)))
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has not as many cells as the header")
    columns = [] if not rows else list(rows[0])
    return {column.strip(): [row[column].strip() for row in rows] for column in columns}
