"""CIFAR-100, STL-10 and Tiny ImageNet from files in their true formats."""

import hashlib
import io
import pickle
import struct
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
import torch
from image_files import VALIDATION, WNIDS, WORDS, jpeg, pixels, stl10_bytes
from PIL import Image

from cktf.data import NO_LABEL, MemoryLoader, ReadOptions, StreamedImages, load_dataset
from cktf.errors import DataError

RNG = np.random.default_rng


# CIFAR-100

COARSE, FINE = [4, 19, 0], [99, 0, 41]


def cifar_pictures(rows):
    """[N, 3072] planes as [N, 32, 32, 3], value by value."""
    found = np.empty((len(rows), 32, 32, 3), np.uint8)
    for n, y, x, channel in np.ndindex(found.shape):
        found[n, y, x, channel] = rows[n, channel * 1024 + y * 32 + x]
    return found


def cifar100_records(coarse, fine, rows):
    each = zip(coarse, fine, rows, strict=True)
    return b"".join(bytes([c, f]) + row.tobytes() for c, f, row in each)


@pytest.fixture
def binary100(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        (folder / f"{name}.bin").write_bytes(cifar100_records(COARSE, FINE, pixels(seed, 3, 3072)))
    return folder


def string(text):
    return b"U" + bytes([len(text)]) + text.encode()


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def python2_pickle(rows, fine, coarse):
    """What cPickle of Python 2 writes, protocol 2, as in the archive: strings are bytes."""
    one = b"J\xff\xff\xff\xff"
    kind = b"cnumpy\ndtype\n" + string("u1") + b"K\x00K\x01\x87R"
    kind += b"(K\x03" + string("|") + b"NNN" + one + one + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string("b")
    array += b"\x87R(K\x01" + number(rows.shape[0]) + number(rows.shape[1]) + b"\x86" + kind
    array += b"\x89T" + struct.pack("<I", rows.size) + rows.tobytes() + b"tb"

    def numbers(values):
        return b"](" + b"".join(map(number, values)) + b"e"

    items = string("batch_label") + string("training batch 1 of 1")
    items += string("data") + array + string("fine_labels") + numbers(fine)
    items += string("coarse_labels") + numbers(coarse)
    return b"\x80\x02}(" + items + b"u."


@pytest.fixture
def python100(tmp_path, monkeypatch):
    """Writes files of the Python layout, whose check sums torchvision is told."""
    from torchvision.datasets import CIFAR100

    def refuse(*args, **kwargs):
        raise URLError("no network")

    def write(name, raw):
        (folder / name).write_bytes(raw)
        sums = [[name, hashlib.md5(raw).hexdigest()]]
        monkeypatch.setattr(CIFAR100, f"{name}_list", sums)

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        write(name, python2_pickle(pixels(seed, 3, 3072), FINE, COARSE))
    write.folder = folder
    return write


@pytest.mark.parametrize(("split", "seed"), [("train", 0), ("test", 1)])
@pytest.mark.parametrize("layout", ["binary100", "python100"])
@pytest.mark.parametrize("inside", [True, False])
def test_cifar100_in_both_layouts(request, layout, split, seed, inside):
    made = request.getfixturevalue(layout)
    folder = made if layout == "binary100" else made.folder
    found = load_dataset("cifar100", folder if inside else folder.parent, split)
    assert found.labels.tolist() == FINE
    assert (found.images.numpy() == cifar_pictures(pixels(seed, 3, 3072))).all()
    assert len(set(found.classes)) == 100
    assert list(found.classes) == sorted(found.classes)
    assert (found.classes[0], found.classes[41], found.classes[99]) == (
        "apple", "lawn_mower", "worm",
    )  # fmt: skip
    assert found.mean == (0.5071, 0.4867, 0.4408)
    assert found.std == (0.2675, 0.2565, 0.2761)


ROWS = pixels(7, 3, 3072)
WHOLE = cifar100_records(COARSE, FINE, ROWS)
BAD_BINARY = {
    "cut": (WHOLE[:-1], r"train.bin is cut short.*expected 9,222 bytes.*of 3,074, found 9,221"),
    "empty": (b"", r"expected 3,074 bytes.*found 0"),
    "of CIFAR-10": (WHOLE[: 3073 * 2], r"expected 6,148 bytes.*found 6,146"),
    "label": (cifar100_records(COARSE, [99, 100, 0], ROWS), "labels run from 0 to 100, and there"),
    "coarse": (cifar100_records([0, 20, 3], FINE, ROWS), "coarse labels.*0 to 19, found 20"),
}


@pytest.mark.parametrize(("raw", "words"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_damaged_binary_files_are_named(binary100, raw, words):
    (binary100 / "train.bin").write_bytes(raw)
    with pytest.raises(DataError, match=words):
        load_dataset("cifar100", binary100, "train")


class Command:
    """What must not run when a file is opened."""

    def __reduce__(self):
        return eval, ("1 / 0",)


BAD_PICKLES = {
    "code": (pickle.dumps({"data": Command()}, 2), "it calls .*eval, which images do not need"),
    "cut": (python2_pickle(ROWS, FINE, COARSE)[:-500], "is not a file of CIFAR-100's Python"),
    "no labels": (pickle.dumps({"data": ROWS}, 2), "fine_labels"),
    "fewer labels": (
        python2_pickle(ROWS, FINE[:2], COARSE), r"found \(3, 3072\) of uint8 and 2 labels",
    ),
    "floats": (
        pickle.dumps({"data": ROWS / 255, "fine_labels": FINE}, 2), "of float64 and 3 labels",
    ),
    "label": (python2_pickle(ROWS, [1, 2, 100], COARSE), "labels run from 1 to 100"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "words"), BAD_PICKLES.values(), ids=BAD_PICKLES)
def test_pickles_are_read_without_running_code(python100, raw, words):
    python100("train", raw)
    with pytest.raises(DataError, match=words):
        load_dataset("cifar100", python100.folder, "train")


def test_a_file_with_another_check_sum_is_fetched_again_or_reported(python100):
    path = python100.folder / "train"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"no complete cifar-100-binary or.*-python.*no network"):
        load_dataset("cifar100", python100.folder.parent, "train")


def test_cifar100_needs_a_folder(tmp_path):
    with pytest.raises(DataError, match="CIFAR-100 needs --data-dir"):
        load_dataset("cifar100", None, "train")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        load_dataset("cifar100", tmp_path / "nowhere", "train")


# STL-10


NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
STL = {split: pixels(seed, 3, 96, 96, 3) for seed, split in enumerate(("train", "test"))}
UNLABELED_SPLIT = pixels(9, 4, 96, 96, 3)


@pytest.fixture
def stl(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, images in STL.items():
        (folder / f"{split}_X.bin").write_bytes(stl10_bytes(images))
        (folder / f"{split}_y.bin").write_bytes(bytes([1, 10, 4]))
    (folder / "unlabeled_X.bin").write_bytes(stl10_bytes(UNLABELED_SPLIT))
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
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
        assert (found.images[i].numpy() == UNLABELED_SPLIT[i]).all()
    assert "4 images without labels, 96x96" in found.describe()
    if budget:
        (batch,) = MemoryLoader(found, 4, train=False).epoch(0)
        assert batch.labels is None


def test_stl10_names_its_classes_itself_where_the_file_is_away(stl):
    (stl / "class_names.txt").unlink()
    assert list(load_dataset("stl10", stl, "test").classes) == NAMES


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
    "names": ("class_names.txt", b"cat dog", "10 classes, found 2 names"),
}


@pytest.mark.parametrize(("name", "raw", "words"), BAD_STL.values(), ids=BAD_STL)
def test_damaged_files_of_stl10_are_named(stl, name, raw, words):
    (stl / name).unlink()
    if raw is not None:
        (stl / name).write_bytes(raw)
    with pytest.raises(DataError, match=words):
        load_dataset("stl10", stl, "train")


@pytest.mark.parametrize("raw", [b"", b"x" * (ONE + 1)])
def test_unlabeled_images_are_whole(stl, raw):
    (stl / "unlabeled_X.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"unlabeled_X.bin is cut.*expected 27,648 bytes"):
        load_dataset("stl10", stl, "unlabeled")


def test_splits_that_a_data_set_has(stl):
    with pytest.raises(DataError, match="stl10 has no split 'val'; it has train, test, unlabeled"):
        load_dataset("stl10", stl, "val")


# Tiny ImageNet


def opened(raw):
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


@pytest.mark.parametrize("inside", [True, False])
def test_tiny_imagenet(tiny_imagenet_dir, inside):
    train, test = (
        load_dataset(
            "tiny-imagenet", tiny_imagenet_dir if inside else tiny_imagenet_dir.parent, split
        )
        for split in ("train", "test")
    )
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert test.labels.tolist() == [label for _, label in VALIDATION]
    for i, image in enumerate(train.images):
        assert (image.numpy() == opened(jpeg(10 * (i // 2) + i % 2, gray=i % 2 == 1))).all()
    for i, image in enumerate(test.images):
        assert (image.numpy() == opened(jpeg(100 + i))).all()
    # Two classes share a word: their numbers tell them apart.
    assert list(train.classes) == [
        "Egyptian cat", "reel (n04067472)", "volleyball", "reel (n04099969)",
    ]  # fmt: skip
    assert train.images.shape[1:] == (64, 64, 3)


LINE = f"val_0.JPEG\t{WNIDS[0]}\t0\t0\t9\t9\n"
BAD_TINY = {
    "no wnids": ("wnids.txt", None, r"no wnids.txt in .*tiny-imagenet-200.zip"),
    "no classes": ("wnids.txt", "", "two or more; found 0"),
    "twice": ("wnids.txt", "\n".join([*WNIDS, WNIDS[1]]), "found twice n04067472"),
    "unknown class": ("wnids.txt", "\n".join([*WNIDS, "n9"]), "none for n9"),
    "no words": ("words.txt", None, "has no words.txt"),
    "fewer words": ("words.txt", WORDS[:40], "has no words for n04067472, n04540053, n04099969"),
    "no annotations": ("val/val_annotations.txt", None, "val has no val_annotations.txt"),
    "empty annotations": ("val/val_annotations.txt", "", "no line in it"),
    "no tabs": ("val/val_annotations.txt", LINE + "val_1 n1", "line 2: a file, a tab and a class"),
    "foreign class": ("val/val_annotations.txt", "val_0.JPEG\tn1\n", "line 1: .*val_0.JPEG"),
    "absent image": (
        "val/val_annotations.txt", LINE + LINE.replace("val_0", "val_9"), "no val_9.JPEG in val",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BAD_TINY.values(), ids=BAD_TINY)
def test_what_is_wrong_with_tiny_imagenet_is_said(tiny_imagenet_dir, name, text, words):
    (tiny_imagenet_dir / name).unlink()
    if text is not None:
        (tiny_imagenet_dir / name).write_text(text)
    with pytest.raises(DataError, match=words):
        [load_dataset("tiny-imagenet", tiny_imagenet_dir, split) for split in ("train", "test")]


def test_a_class_of_tiny_imagenet_without_images(tiny_imagenet_dir):
    for path in (tiny_imagenet_dir / "train" / WNIDS[2] / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"train/WNID/images; none for {WNIDS[2]}"):
        load_dataset("tiny-imagenet", tiny_imagenet_dir, "train")


def test_tiny_imagenet_needs_a_folder():
    with pytest.raises(DataError, match="Tiny ImageNet needs --data-dir"):
        load_dataset("tiny-imagenet", None, "train")


# What all of them share


def test_another_size_on_request(stl):
    small = load_dataset("stl10", stl, "train", ReadOptions(image_size=48))
    for found, image in zip(small.images, STL["train"], strict=True):
        expected = Image.fromarray(image).resize((48, 48), Image.Resampling.BILINEAR)
        assert (found.numpy() == np.asarray(expected)).all()


def test_grey_on_request(stl):
    gray = load_dataset("stl10", stl, "train", ReadOptions(channels=1))
    assert gray.images.shape == (3, 96, 96, 1)
    weights = torch.tensor([0.299, 0.587, 0.114])
    expected = torch.from_numpy(STL["train"]).float() @ weights
    assert (gray.images[..., 0] - expected).abs().max() <= 1
    assert len(gray.mean) == len(gray.std) == 1
    assert gray.mean[0] == pytest.approx(0.299 * 0.4467 + 0.587 * 0.4398 + 0.114 * 0.4066)
