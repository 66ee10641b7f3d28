"""Tables of images in files: CSV with paths, Parquet with paths or the files themselves."""

import csv

import datasets
import pytest
from image_files import jpeg, write_jpegs
from small_runs import run_command

from cktf.data import ReadOptions, load_dataset
from cktf.errors import DataError
from cktf.recipes import DataConfig, build_data

NAMES = ["cat", "dog"]


@pytest.fixture
def photos(tmp_path):
    """Paths of ten JPEGs of each of two classes, relative to `tmp_path`."""
    for label, name in enumerate(NAMES):
        write_jpegs(tmp_path / "photos" / name, 10, first=100 * label)
    return sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg"))


def write_csv(path, rows, header=("image", "label"), delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return f"table:{path}"


def rows_of(photos):
    return [(path, path.split("/")[1]) for path in photos]


@pytest.mark.parametrize(
    ("name", "header", "form"),
    [
        ("a.csv", ("image", "label"), {}),
        ("a.CSV", ("Path", "Class"), {"delimiter": ";", "encoding": "utf-8-sig"}),
        ("a.tsv", ("file_name", " label"), {"delimiter": "\t"}),
    ],
)
def test_a_fifth_is_held_out_as_of_a_folder(photos, tmp_path, name, header, form):
    table = write_csv(tmp_path / name, rows_of(photos), header, **form)
    train, test = (load_dataset(table, None, part) for part in ("train", "test"))
    assert (len(train), len(test), list(train.classes)) == (16, 4, NAMES)
    # A new row moves no other image between the splits.
    write_jpegs(tmp_path / "photos" / "new", 1, first=900)
    rows = [*rows_of(photos), ("photos/new/000.jpg", "cat")]
    (new,) = (tmp_path / "photos" / "new").iterdir()
    rows[-1] = (str(new), "cat")
    more = load_dataset(write_csv(tmp_path / name, rows, header, **form), None, "test")
    kept = {image.numpy().tobytes() for image in test.images}
    assert len(kept - {image.numpy().tobytes() for image in more.images}) <= 1


def test_paths_as_windows_writes_them(photos, tmp_path):
    rows = [(path.replace("/", "\\"), label) for path, label in rows_of(photos)]
    assert len(load_dataset(write_csv(tmp_path / "a.csv", rows), None, "train")) == 16


def test_a_column_of_splits(photos, tmp_path):
    rows = [(p, k, "Train" if i % 10 < 7 else "val") for i, (p, k) in enumerate(rows_of(photos))]
    table = write_csv(tmp_path / "a.csv", rows, ("image", "label", "split"))
    train, test = (load_dataset(table, None, part) for part in ("train", "test"))
    assert (len(train), len(test)) == (14, 6)
    assert test.labels.tolist() == [0] * 3 + [1] * 3
    assert "tested on val" in train.note
    rows[3] = (*rows[3][:2], "")
    table = write_csv(tmp_path / "a.csv", rows, ("image", "label", "split"))
    with pytest.raises(DataError, match=r"split is train, val or test; found '' in 1 rows"):
        load_dataset(table, None, "train")


def test_validation_rows_beside_test_rows_choose_the_epoch(photos, tmp_path):
    splits = ["train", "dev", "test", "train"] * 5
    rows = [(*row, split) for row, split in zip(rows_of(photos), splits, strict=True)]
    table = write_csv(tmp_path / "a.csv", rows, ("image", "label", "split"))
    data = build_data(DataConfig(name=table, batch_size=2), seed=0)
    assert [len(part) for part in (data.raw_train, data.raw_validation, data.raw_test)] == [
        10,
        5,
        5,
    ]
    assert "tested on test" in data.description


def test_all_rows_serve_where_another_table_has_the_test_images(photos, tmp_path):
    table = write_csv(tmp_path / "a.csv", rows_of(photos))
    options = ReadOptions(hold_out=False)
    assert [len(load_dataset(table, None, p, options)) for p in ("train", "test")] == [20, 20]


def paths_of(photos, tmp_path):
    return photos


def bytes_of(photos, tmp_path):
    return [(tmp_path / path).read_bytes() for path in photos]


def files_of(photos, tmp_path):
    return [{"bytes": jpeg(i), "path": None} for i in range(len(photos))]


@pytest.mark.parametrize("images", [paths_of, bytes_of, files_of])
def test_parquet(photos, tmp_path, images):
    columns = {"picture": images(photos, tmp_path), "label": [i // 10 for i in range(20)]}
    features = None
    if images is files_of:
        kinds = {"picture": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
        features = datasets.Features(kinds)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    options = ReadOptions(image_column="picture")
    train, test = (
        load_dataset(f"table:{tmp_path / 'a.parquet'}", None, part, options)
        for part in ("train", "test")
    )
    assert (len(train), len(test)) == (16, 4)
    assert list(train.classes) == (NAMES if images is files_of else ["0", "1"])
    assert sorted(test.labels.tolist()) == [0, 0, 1, 1]


MISTAKES = {
    "no such image": (("image,label", "photos/none.jpg,a", "x.jpg,b"), "no such file in /"),
    "no path": (("image,label", ",a", ",a", "x.jpg,b", "y.jpg,b"), "no image in this row"),
    "no label": (
        ("image,label", "x.jpg,", "y.jpg,b"),
        "1 of train have none, the first is number 0",
    ),
    "fractions": (("image,label", "x.jpg,0.5", "y.jpg,1"), "regression"),
    "no rows": (("image,label",), "has no rows"),
    "empty": ((), "has no rows"),
    "no columns": (("a,b", "x.jpg,0"), r"columns are a \(Value\), b .*data.label_column"),
    "too many cells": (("image,label", "x.jpg,0,1"), "row 2 has not as many cells"),
    "too few cells": (("image,label", "x.jpg"), "row 2 has not as many cells"),
    "one image": (("image,label", "x.jpg,a", "y.jpg,b"), "needs two images or more; one in a, b"),
    "test alone": (("image,label,split", "x.jpg,0,test"), "called train is required.*found test"),
}


@pytest.mark.parametrize(("lines", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_table(tmp_path, lines, words):
    (tmp_path / "a.csv").write_text("\n".join(lines))
    options = ReadOptions(hold_out=words.startswith(("no image", "needs")))
    with pytest.raises(DataError, match=words):
        load_dataset(f"table:{tmp_path / 'a.csv'}", None, "train", options)


def test_names_that_are_no_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"image,label\n\xff\xfe,1\n")
    (tmp_path / "b.parquet").write_text("no parquet")
    (tmp_path / "photos").mkdir()
    for name, words in {
        "table:": "table needs a file",
        "table:none.csv": "there is no such file",
        "table:photos": "ends in .csv",
        "table:a.csv": "text in UTF-8",
        "table:b.parquet": "cannot be read",
        "a.csv": "text in UTF-8",
        "none.parquet": "table:/.*/none.parquet: there is no such file",
    }.items():
        with pytest.raises(DataError, match=words):
            load_dataset(name, None, "train")


def test_a_table_by_command(photos, tmp_path, monkeypatch):
    write_csv(tmp_path / "a.csv", [(k, "x", p) for p, k in rows_of(photos)], ("kind", "note", "at"))
    monkeypatch.chdir(tmp_path)
    small = "--epochs 1 --set data.batch_size=4 --set data.image_size=32"
    columns = "--set data.image_column=at --set data.label_column=kind"
    line = f"train --model resnet8 --data a.csv {columns} {small} --out run"
    assert "run" in run_command(line)
    monkeypatch.chdir(tmp_path.parent)
    assert "of 4 test images" in run_command(f"evaluate {tmp_path / 'run'}")
