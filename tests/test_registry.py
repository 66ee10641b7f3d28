"""Data sets by name."""

import pytest

from cktf.data import DATASETS, get_dataset_info, load_dataset
from cktf.errors import DataError


def test_data_sets_are_known_by_name():
    assert sorted(DATASETS) == [
        "cifar10", "cifar100", "fashion-mini", "fashion-mnist", "hf:NAME", "imagefolder:DIR",
        "stl10", "tiny-imagenet",
    ]  # fmt: skip
    for split in ("train", "test"):
        images = load_dataset("fashion-mini", None, split)
        assert getattr(get_dataset_info("fashion-mini"), split) == len(images)


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(DataError, match=r"'cifar-10'.*Did you mean 'cifar10'"):
        get_dataset_info("cifar-10")
    with pytest.raises(DataError, match="stl10 has no split 'val'; it has train, test, unlabeled"):
        load_dataset("stl10", tmp_path, "val")
