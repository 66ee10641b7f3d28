"""Fashion-MNIST from IDX files, and the small part inside the package."""

import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import pixels

from cktf.data import fashion, get_labels, load_dataset
from cktf.errors import DataError


def idx(array, kind=8):
    """A file in the IDX format, as its first page describes it."""
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


def write_fashion(folder, images, labels, prefix="train", packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        path, raw = folder / f"{prefix}-{name}-ubyte", idx(array)
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
        else:
            path.write_bytes(raw)


@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_become_padded_color_images(tmp_path, split, prefix, below, packed):
    images, labels = pixels(0, 6, 28, 28), np.array([3, 0, 9, 1, 1, 7])
    write_fashion(tmp_path / below, images, labels, prefix, packed)
    found = load_dataset("fashion-mnist", tmp_path, split)
    expected = np.zeros((6, 32, 32, 3), np.uint8)
    for i, y, x in np.ndindex(images.shape):
        expected[i, y + 2, x + 2] = images[i, y, x]
    assert found.images.dtype == torch.uint8
    assert (found.images.numpy() == expected).all()
    assert found.labels.tolist() == labels.tolist()


def test_without_a_directory_the_system_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "system")
    with pytest.raises(DataError, match=r"(?s)train-images.*system.*--data-dir"):
        load_dataset("fashion-mnist", None, "train")
    write_fashion(tmp_path / "system", pixels(0, 3, 28, 28), np.arange(3))
    assert len(load_dataset("fashion-mnist", None, "train")) == 3


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GOOD = idx(pixels(1, 4, 28, 28))
DAMAGED = {
    "missing images": (IMAGES, None, f"no {IMAGES}"),
    "missing labels": (LABELS, None, f"no {LABELS}"),
    "cut by a byte": (IMAGES, GOOD[:-1], "cut short"),
    "a byte too many": (IMAGES, GOOD + b"\0", "cut short"),
    "cut in the header": (IMAGES, GOOD[:6], "cut short"),
    "empty": (IMAGES, b"", "cut short"),
    "values of another type": (IMAGES, idx(pixels(1, 4, 28, 28), kind=13), "not an IDX file"),
    "labels in place of images": (IMAGES, idx(np.arange(4)), "not an IDX file"),
    "images in place of labels": (LABELS, GOOD, "not an IDX file"),
    "no IDX at all": (IMAGES, b"<html>404</html>" * 99, "not an IDX file"),
    "fewer labels": (LABELS, idx(np.arange(3)), "3 labels"),
    "other size": (IMAGES, idx(pixels(1, 4, 28, 27)), "28x28"),
    "no images": (IMAGES, idx(pixels(1, 0, 28, 28)), "a label for each"),
    "label out of range": (LABELS, idx(np.array([0, 1, 2, 10])), "labels run from 0 to 10"),
    "cut archive": (IMAGES + ".gz", gzip.compress(GOOD)[:-9], "cannot be read"),
    "damaged archive": (IMAGES + ".gz", gzip.compress(GOOD)[:10] + b"\7" * 99, "cannot be read"),
    "no archive": (IMAGES + ".gz", GOOD, "cannot be read"),
}


@pytest.mark.parametrize(("name", "raw", "words"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_idx_files_are_named(tmp_path, name, raw, words):
    write_fashion(tmp_path, pixels(1, 4, 28, 28), np.arange(4))
    (tmp_path / name.removesuffix(".gz")).unlink()
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=words):
        load_dataset("fashion-mnist", tmp_path, "train")


@pytest.fixture(scope="module")
def mini():
    return {split: load_dataset("fashion-mini", None, split) for split in ("train", "test")}


@pytest.mark.parametrize(("split", "each"), [("train", 1000), ("test", 500)])
def test_fashion_mini_is_whole_balanced_and_bordered(mini, split, each):
    data = mini[split]
    assert data.images.shape == (10 * each, 32, 32, 3)
    assert Counter(data.labels.tolist()) == dict.fromkeys(range(10), each)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:30, 2:30] = False
    assert not data.images[:, border].any()
    assert (data.images == data.images[..., :1]).all()
    assert len({image.numpy().tobytes() for image in data.images[..., 0]}) == 10 * each


def test_fashion_mini_shares_no_image_between_splits(mini):
    train, test = ({i.numpy().tobytes() for i in mini[s].images[..., 0]} for s in ("train", "test"))
    assert not train & test


@pytest.mark.skipif(not fashion.DEBIAN.is_dir(), reason="needs the whole of Fashion-MNIST")
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_fashion_mini_is_part_of_fashion_mnist(mini, split, prefix):
    def read(name):
        path = fashion.DEBIAN / f"{prefix}-{name}-ubyte"
        if path.is_file():
            return path.read_bytes()
        return gzip.decompress(path.with_name(path.name + ".gz").read_bytes())

    images, labels = read("images-idx3")[16:], read("labels-idx1")[8:]
    whole = {(images[784 * i : 784 * (i + 1)], label) for i, label in enumerate(labels)}
    inner = mini[split].images[:, 2:30, 2:30, 0].contiguous().numpy()
    part = zip((i.tobytes() for i in inner), mini[split].labels.tolist(), strict=True)
    assert set(part) <= whole


def test_relative_directories(tmp_path, monkeypatch):
    write_fashion(tmp_path / "here", pixels(0, 2, 28, 28), np.arange(2), "t10k")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("fashion-mnist", Path("here"), "test")) == 2


def test_labels_need_no_samples(mini):
    assert torch.equal(get_labels(mini["test"]), mini["test"].labels)
