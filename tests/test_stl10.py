"""STL-10 from files in its binary layout."""

import numpy as np
import pytest
import torch
from image_files import pixels, stl10_bytes
from PIL import Image

from cktf.data import NO_LABEL, MemoryLoader, ReadOptions, StreamedImages, load_dataset
from cktf.errors import DataError

NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
STL = {split: pixels(seed, 3, 96, 96, 3) for seed, split in enumerate(("train", "test"))}
UNLABELED = pixels(9, 4, 96, 96, 3)


@pytest.fixture
def stl(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, images in STL.items():
        (folder / f"{split}_X.bin").write_bytes(stl10_bytes(images))
        (folder / f"{split}_y.bin").write_bytes(bytes([1, 10, 4]))
    (folder / "unlabeled_X.bin").write_bytes(stl10_bytes(UNLABELED))
    return folder


@pytest.mark.parametrize("split", STL)
@pytest.mark.parametrize("inside", [True, False])
def test_stl10(stl, split, inside):
    found = load_dataset("stl10", stl if inside else stl.parent, split)
    assert found.labels.tolist() == [0, 9, 3]
    assert (found.images.numpy() == STL[split]).all()
    assert list(found.classes) == NAMES
    assert found.describe() == "3 images of 10 classes, 96x96, in memory (0.1 MB)"


@pytest.mark.parametrize("budget", [2**30, 0])
def test_stl10_without_labels(stl, budget):
    found = load_dataset("stl10", stl, "unlabeled", ReadOptions(budget=budget))
    assert isinstance(found.images, StreamedImages) == (budget == 0)
    assert not found.labeled
    assert set(found.labels.tolist()) == {NO_LABEL}
    for i in range(4):
        assert (found.images[i].numpy() == UNLABELED[i]).all()
    assert "4 images without labels, 96x96" in found.describe()
    if budget:
        (batch,) = MemoryLoader(found, 4, train=False).epoch(0)
        assert batch.labels is None


ONE = 3 * 96 * 96
BAD_STL = {
    "cut": ("train_X.bin", b"x" * (3 * ONE - 1), r"expected 82,944 .*as many as.*found 82,943"),
    "an image too few": ("train_X.bin", b"x" * 2 * ONE, "expected 82,944 bytes.*found 55,296"),
    "empty": ("train_X.bin", b"", "expected 82,944 bytes.*found 0"),
    "no images": ("train_X.bin", None, "no train_X.bin in .*stl10_binary.tar.gz"),
    "no labels": ("train_y.bin", None, "has no train_y.bin"),
    "empty labels": ("train_y.bin", b"", "from 1 to 10, a byte each; found none"),
    "label of zero": ("train_y.bin", bytes([1, 0, 4]), "found labels from 0 to 4"),
    "label of eleven": ("train_y.bin", bytes([1, 11, 4]), "found labels from 1 to 11"),
}


@pytest.mark.parametrize(("name", "raw", "words"), BAD_STL.values(), ids=BAD_STL)
def test_damaged_files_of_stl10_are_named(stl, name, raw, words):
    (stl / name).unlink()
    if raw is not None:
        (stl / name).write_bytes(raw)
    with pytest.raises(DataError, match=words):
        load_dataset("stl10", stl, "train")


@pytest.mark.parametrize("raw", [b"", b"x" * (ONE + 1)])
def test_cut_files_of_unlabeled_images(stl, raw):
    (stl / "unlabeled_X.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"unlabeled_X.bin is cut.*expected 27,648 bytes"):
        load_dataset("stl10", stl, "unlabeled")


def test_another_size_on_request(stl):
    small = load_dataset("stl10", stl, "train", ReadOptions(image_size=48))
    for found, image in zip(small.images, STL["train"], strict=True):
        expected = Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR)
        assert (found.numpy() == np.asarray(expected)).all()


def test_gray_on_request(stl):
    gray = load_dataset("stl10", stl, "train", ReadOptions(channels=1))
    assert gray.images.shape == (3, 96, 96, 1)
    weights = torch.tensor([0.299, 0.587, 0.114])
    expected = torch.from_numpy(STL["train"]).float() @ weights
    assert (gray.images[..., 0] - expected).abs().max() <= 1
    assert len(gray.mean) == len(gray.std) == 1
    assert gray.mean[0] == pytest.approx(0.299 * 0.4467 + 0.587 * 0.4398 + 0.114 * 0.4066)
