"""Data sets of the Hugging Face Hub, as its library saves them."""

import datasets
import numpy as np
import pytest

from cktf.data import ReadOptions, load_dataset
from cktf.errors import DataError
from cktf.recipes import DataConfig, build_data, check_recipe, load_split, parse_recipe, recipe_hash

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


@pytest.mark.parametrize("unlabeled", [False, True])
def test_validation_beside_test_chooses_the_epoch(tmp_path, unlabeled):
    validation = split(NAMES * 2, NAMES)
    if unlabeled:
        validation = validation.map(lambda row: row | {"label": -1})
    name = saved(
        tmp_path / "a", train=split(NAMES * 3, NAMES), validation=validation,
        test=split(NAMES, NAMES),
    )  # fmt: skip
    data = build_data(DataConfig(name=name, batch_size=2), 0)
    assert (data.train.samples, data.test.samples) == (12, 4)
    assert (None if unlabeled else 8) == (data.validation and data.validation.samples)
    # Without a test split, it is the test split, and chooses nothing.
    name = saved(tmp_path / "b", train=split(NAMES * 3, NAMES), validation=split(NAMES, NAMES))
    data = build_data(DataConfig(name=name, batch_size=2), 0)
    assert (data.validation, data.test.samples) == (None, 4)


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
    with pytest.raises(DataError, match="found: 0, 1, 2, 3"):
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


def plain(labels):
    """A table whose labels are plain values."""
    table = split([NAMES[i % 4] for i in range(len(labels))], NAMES)
    return table.remove_columns("label").add_column("label", labels)


@pytest.mark.parametrize(
    "kind", [("torch", ["label"]), ("arrow", None), ("pandas", None), ("numpy", ["image"])]
)
def test_a_set_format_is_saved_and_not_used(tmp_path, kind):
    table = split(NAMES * 5, NAMES).with_format(kind[0], columns=kind[1])
    train = load_dataset(saved(tmp_path / "a", train=table), None, "train")
    assert [NAMES[label] for label in train.labels] == classes_of(train)
    assert len(train) == 16


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["d", "c", "b", "a"], ["a", "b", "c", "d"]),
        ([7, 10, 9, 1], ["1", "7", "9", "10"]),
        ([2.0, 1.0, 3.0, 0.0], ["0", "1", "2", "3"]),
        (["2", "10", "9", "1"], ["1", "2", "9", "10"]),
        ([True, True, True, False], ["0", "1"]),
    ],
)
def test_labels_without_a_type_of_classes(tmp_path, labels, classes):
    parts = {"train": plain(labels * 2), "test": plain(labels[::-1])}
    train, test = (load_dataset(saved(tmp_path, **parts), None, part) for part in parts)
    assert list(train.classes) == classes
    wanted = [classes.index(str(int(v) if isinstance(v, float | bool) else v)) for v in labels]
    assert train.labels.tolist() == wanted * 2
    assert test.labels.tolist() == wanted[::-1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, 1.5, 1.0, 0.0], "regression"),
        (["0.5", "1", "0", "1"], "regression"),
        ([[0, 1], [1], [0], [1]], "multi-label"),
        ([1, -1, 0, 1], "numbers below 0"),
        ([0, 1, None, 1], "1 of train have none, the first is number 2"),
        (["a", "b", "", "b"], "1 of train have none, the first is number 2"),
        (["a", "a", "a", "a"], "two classes or more"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, labels, words):
    with pytest.raises(DataError, match=words):
        load_dataset(saved(tmp_path, train=plain(labels), test=plain(labels)), None, "train")


def test_named_columns(tmp_path):
    table = split(NAMES * 5, NAMES).rename_columns({"image": "photo", "label": "animal"})
    thumbnails = table.select_columns("photo").rename_column("photo", "thumbnail")
    table = datasets.concatenate_datasets([table, thumbnails], axis=1)
    table = table.add_column("size", ["s", "m", "l", "m", "s"] * 4)
    name = saved(tmp_path, train=table)
    with pytest.raises(DataError, match=r"columns are photo \(Image\), .*data.image_column"):
        load_dataset(name, None, "train")
    section = DataConfig(name=name, image_column="photo", label_column="size")
    assert list(load_split(section, "train").classes) == ["l", "m", "s"]
    with pytest.raises(DataError, match=r"no column 'colour'"):
        load_dataset(name, None, "train", ReadOptions(label_column="colour"))
    options = ReadOptions(image_column="animal", label_column="size")
    with pytest.raises(DataError, match=r"'animal' of train is ClassLabel.* data.image_column"):
        load_dataset(name, None, "train", options)


def test_named_columns_of_other_data_sets():
    recipe = {"kind": "train", "model": "resnet8", "data": {"name": "fashion-mini"}}
    before = recipe_hash(parse_recipe(recipe))
    recipe["data"]["label_column"] = None
    assert recipe_hash(parse_recipe(recipe)) == before
    recipe["data"]["label_column"] = "label"
    (problem,) = check_recipe(parse_recipe(recipe)).messages
    assert problem.startswith("data.label_column: is for data sets hf:NAME and table:FILE")


def test_names_of_splits(tmp_path):
    name = saved(tmp_path / "a", Training=split(NAMES * 2, NAMES), VALID=split(NAMES, NAMES))
    assert len(load_dataset(name, None, "test")) == 4
    name = saved(tmp_path / "b", mine=split(NAMES * 2, NAMES), yours=split(NAMES, NAMES))
    with pytest.raises(DataError, match=r"called train is required.*found mine, yours. Rename"):
        load_dataset(name, None, "train")


def test_another_set_is_evaluated_as_a_whole(tmp_path):
    """Without a test split, and where there is no other; training keeps its images."""
    whole = ReadOptions(hold_out=False)
    for part in ("train", "validation", "test"):
        name = saved(tmp_path / part, **{part: split(NAMES * 5, NAMES)})
        assert len(load_dataset(name, None, "test", whole)) == 20
    name = saved(tmp_path / "a", train=split(NAMES * 5, NAMES))
    assert len(load_dataset(name, None, "train", whole)) == 16
