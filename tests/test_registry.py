"""Data sets by name."""

from pathlib import Path

import pytest
from image_files import write_jpegs
from small_runs import run_command

import cktf
from cktf.data import DATASETS, get_dataset_info, load_dataset, open_dataset
from cktf.errors import DataError, RecipeError
from cktf.recipes import DataConfig, build_data


def test_data_sets_are_known_by_name():
    assert sorted(DATASETS) == [
        "cifar10", "cifar100", "fashion-mini", "fashion-mnist", "hf:NAME", "imagefolder:DIR",
        "stl10", "table:FILE", "tiny-imagenet",
    ]  # fmt: skip
    for split in ("train", "test"):
        images = load_dataset("fashion-mini", None, split)
        assert getattr(get_dataset_info("fashion-mini"), split) == len(images)


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(DataError, match=r"'cifar-10'.*Did you mean 'cifar10'"):
        get_dataset_info("cifar-10")
    with pytest.raises(DataError, match="stl10 has no split 'val'; it has train, test, unlabeled"):
        load_dataset("stl10", tmp_path, "val")


@pytest.mark.parametrize("name", ["photos", "./photos", "{}/photos", "~/photos", "../here/photos/"])
def test_a_folder_is_a_data_set(class_folders, tmp_path, monkeypatch, name):
    here = tmp_path / "here"
    here.mkdir()
    class_folders.rename(here / "photos")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    name = name.format(here)
    assert len(load_dataset(name, None, "train")) == 24
    section = DataConfig(name=name, test=name)
    assert section.name == section.test
    assert Path(section.name.removeprefix("imagefolder:")).samefile(here / "photos")


def test_a_folder_is_named_in_commands_and_in_python(class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = "train --model resnet8 --epochs 1 --set data.batch_size=4 --set runtime.track=none"
    run_command(f"{train} --data photos --out a")
    run = cktf.teach(
        "resnet8", train=Path("photos"), epochs=1, out="b", show=False,
        overrides={"data.batch_size": 4, "runtime.track": "none"},
    )  # fmt: skip
    assert run.summary["dataset"] == f"imagefolder:{class_folders}"
    for folder in ("a", "b"):
        accuracy, name = cktf.evaluate(folder, "photos")
        assert (accuracy.samples, name) == (6, f"imagefolder:{class_folders}")
    assert "images" in run_command("datasets photos")


def test_a_data_set_precedes_a_folder_of_its_name(class_folders, monkeypatch):
    monkeypatch.chdir(class_folders.parent)
    class_folders.rename("fashion-mini")
    section = DataConfig(name="fashion-mini")
    assert section.name == "fashion-mini"
    assert (
        "fashion-mini is the library's data set, not the folder fashion-mini, which is "
        "./fashion-mini"
    ) in build_data(section, 0).description
    assert len(load_dataset("./fashion-mini", None, "train")) == 24
    Path("cifar10").mkdir()
    with pytest.raises(
        RecipeError, match=r"--data-dir DIR\. .* folder cifar10, which is \./cifar10"
    ):
        cktf.teach("resnet8", train="cifar10", out="a", show=False)
    # `custom` is a user's own data set.
    Path("custom").mkdir()
    assert DataConfig(name="custom").name == "custom"


def test_a_file_is_no_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos.zip").write_bytes(b"PK")
    for name in ("photos.zip", "imagefolder:photos.zip", str(tmp_path / "photos.zip")):
        with pytest.raises(DataError, match=r"photos\.zip.* archive, extract it and give"):
            open_dataset(name, None, "train")
    with pytest.raises(RecipeError, match=r"no data set 'phtos', and no folder"):
        cktf.teach("resnet8", train="phtos", out="a", show=False)


def test_the_same_classes_in_another_order(class_folders, tmp_path, monkeypatch):
    """Test images of another data set get the labels of the training images."""
    for label in ("ant", "cat", "dog"):
        write_jpegs(tmp_path / "other" / label, 2)
    read = open_dataset(f"imagefolder:{tmp_path / 'other'}", None, "test")
    section = DataConfig(name=str(class_folders), test=str(tmp_path / "other"), batch_size=2)
    backwards = load_dataset(section.test, None, "test").select_classes(["dog", "cat", "ant"])
    load = load_dataset

    def load_backwards(name, *others):
        return backwards if name == section.test else load(name, *others)

    monkeypatch.setattr("cktf.recipes.data.load_dataset", load_backwards)
    data = build_data(section, 0)
    assert data.raw_test.classes == read.classes == ("ant", "cat", "dog")
    assert data.raw_test.labels.tolist() == (2 - backwards.labels).tolist()
