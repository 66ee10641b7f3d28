"""Data sets of the Hugging Face Hub, as its library saves them."""

import datasets
import numpy as np
import pytest

from cktf.data import load_dataset
from cktf.errors import DataError

NAMES = ["ant", "bee", "cat", "dog"]


def images(labels):
    """Gray images whose brightness is their class's number, so that labels can be checked."""
    return [np.full((8, 8, 3), 20 * NAMES.index(name), dtype=np.uint8) for name in labels]


def split(labels, names):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows = {"image": images(labels), "label": [names.index(name) for name in labels]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def saved(folder, **splits):
    datasets.DatasetDict(splits).save_to_disk(folder)
    return f"hf:{folder}"


def classes_of(data):
    """By the brightness of the images."""
    return [NAMES[int(image.max()) // 20] for image in data.images]


def test_images_and_classes(tmp_path):
    name = saved(tmp_path / "a", train=split(NAMES * 3, NAMES), test=split(NAMES, NAMES))
    train, test = (load_dataset(name, None, part) for part in ("train", "test"))
    assert (len(train), len(test), list(train.classes)) == (12, 4, NAMES)
    assert [NAMES[label] for label in train.labels] == classes_of(train) == NAMES * 3
    assert "tested on test" in train.note


def test_a_fifth_is_held_out(tmp_path):
    name = saved(tmp_path / "a", train=split(NAMES * 5, NAMES))
    train, test = (load_dataset(name, None, part) for part in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    assert sorted(classes_of(test)) == NAMES
    assert [NAMES[label] for label in test.labels] == classes_of(test)


def test_splits_that_were_encoded_each_by_itself(tmp_path):
    """The same number is another class there; names tell."""
    few = ["ant", "cat", "dog"]
    name = saved(tmp_path / "a", train=split(NAMES * 2, NAMES), test=split(few, few))
    test = load_dataset(name, None, "test")
    assert [NAMES[label] for label in test.labels] == classes_of(test) == few


def test_classes_that_training_does_not_know(tmp_path):
    other = datasets.Dataset.from_dict(
        {"image": images(["ant"]), "label": [0]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["elk"])}
        ),
    )
    name = saved(tmp_path / "a", train=split(NAMES * 2, NAMES), test=other)
    with pytest.raises(DataError, match=r"classes of test in 'label' must be among.*elk"):
        load_dataset(name, None, "train")
    numbers = split(NAMES, NAMES).cast_column("label", datasets.Value("int64"))
    name = saved(tmp_path / "b", train=split(NAMES * 2, NAMES), test=numbers)
    with pytest.raises(DataError, match="found: none"):
        load_dataset(name, None, "train")


def test_a_test_split_without_labels_is_passed_over(tmp_path):
    parts = {"train": split(NAMES * 5, NAMES), "test": split(NAMES, NAMES).remove_columns("label")}
    name = saved(tmp_path / "a", **parts, validation=split(NAMES[:3], NAMES))
    assert len(load_dataset(name, None, "test")) == 3
    assert "tested on validation" in load_dataset(name, None, "train").note
    name = saved(tmp_path / "b", **parts)
    assert "a fifth of each class of train" in load_dataset(name, None, "train").note


def test_columns_that_are_missing(tmp_path):
    name = saved(tmp_path / "a", train=split(NAMES, NAMES).remove_columns("label"))
    with pytest.raises(DataError, match="one column of type Image and one of type ClassLabel"):
        load_dataset(name, None, "train")
