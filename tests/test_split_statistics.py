"""`cktf datasets NAME`: counts, sizes, balance and broken files of a data set."""

import re

from image_files import encode_image, smooth_image, write_jpegs
from typer.testing import CliRunner

from cktf.cli.main import app
from cktf.data import compute_split_statistics, open_dataset


def run_datasets(*arguments):
    result = CliRunner().invoke(app, ["datasets", *map(str, arguments)], env={"COLUMNS": "200"})
    cells = [re.split(r"\s{2,}", line.strip()) for line in result.output.splitlines()]
    return result, {row[0]: row for row in cells if row[0]}


def test_cktf_datasets_shows_what_is_in_one(tmp_path):
    write_jpegs(tmp_path / "train" / "cat", 6, sizes=[(40, 60), (50, 90)])
    write_jpegs(tmp_path / "train" / "dog", 3, sizes=[(80, 70)])
    for name in ("cat", "dog"):
        write_jpegs(tmp_path / "val" / name, 2)
    for i in range(12):
        (tmp_path / "train" / "dog" / f"bad{i:02}.jpg").write_bytes(
            encode_image(smooth_image(0))[:300]
        )
    result, rows = run_datasets(f"imagefolder:{tmp_path}")
    assert result.exit_code == 0, result.output
    assert rows["train"] == [
        "train", "21", "2", "6 to 15", "2.50", "40x60 to 80x70, shorter sides 50", "64x64", "12",
    ]  # fmt: skip
    assert rows["test"] == ["test", "4", "2", "2", "1.00", "40x40", "64x64", "0"]
    assert "tested on val; shorter sides have a median of 50: image_size 64" in result.output
    assert result.output.count("broken: /") == 10
    assert "broken: 2 more in train" in result.output


def test_cktf_datasets_of_a_set_in_one_file():
    result, rows = run_datasets("fashion-mini")
    assert result.exit_code == 0
    assert rows["train"][1:] == ["10,000", "10", "1,000", "1.00", "32x32", "32x32", "0"]


def test_cktf_datasets_of_what_is_not_there(tmp_path):
    for name, words in (("cifar11", "Did you mean"), ("imagefolder:/nowhere", "no such folder")):
        result, _ = run_datasets(name)
        assert result.exit_code == 2
        assert words in result.output
    assert run_datasets("stl10", "--data-dir", tmp_path)[0].exit_code == 2


def test_statistics_count_every_image(split_folders):
    (split_folders / "train" / "dog" / "bad.jpg").write_bytes(encode_image(smooth_image(0))[:-40])
    found = compute_split_statistics(open_dataset(f"imagefolder:{split_folders}", None, "train"))
    assert (found.images, found.counts, found.imbalance) == (9, (4, 5), 1.25)
    assert len(found.sizes) == 8
    assert len(found.broken) == 1
