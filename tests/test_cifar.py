"""CIFAR-10 and CIFAR-100 from files in their binary and their Python layout."""

import hashlib
import pickle
import struct
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
from image_files import pixels

from cktf.data import load_dataset
from cktf.errors import DataError

TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
COARSE, FINE = [4, 19, 0], [99, 0, 41]
# Files of each split: name and seed of its pixels.
FILES = {
    "cifar10": {"train": [(n, s) for s, n in enumerate(TRAIN)], "test": [("test_batch", 5)]},
    "cifar100": {"train": [("train", 0)], "test": [("test", 1)]},
}
FOLDERS = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}


def labels_of_file(name, seed):
    return FINE if name == "cifar100" else [seed, 9 - seed, 3]


def to_images(rows):
    """[N, 3072] planes as [N, 32, 32, 3], value by value."""
    images = np.empty((len(rows), 32, 32, 3), np.uint8)
    for n, y, x, channel in np.ndindex(images.shape):
        images[n, y, x, channel] = rows[n, channel * 1024 + y * 32 + x]
    return images


def records(labels, rows, coarse=None):
    heads = [[label] for label in labels] if coarse is None else zip(coarse, labels, strict=True)
    return b"".join(bytes(head) + row.tobytes() for head, row in zip(heads, rows, strict=True))


def string(text):
    return b"U" + bytes([len(text)]) + text.encode()


def number(value):
    return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)


def python2_pickle(rows, fine, coarse=COARSE):
    """The output of Python 2's cPickle, protocol 2, as in the archive: strings are bytes."""
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
def write_file(tmp_path, monkeypatch):
    """Write a file of a layout and tell torchvision its check sum; without a network."""
    from torchvision import datasets

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    sums = {"cifar10": {}, "cifar100": {}}

    def write(name, layout, file, raw):
        folder = tmp_path / FOLDERS[name, layout]
        folder.mkdir(exist_ok=True)
        (folder / (f"{file}.bin" if layout == "binary" else file)).write_bytes(raw)
        sums[name][file] = hashlib.md5(raw).hexdigest()
        for split, files in FILES[name].items():
            known = [[f, sums[name].get(f, "")] for f, _ in files]
            monkeypatch.setattr(getattr(datasets, name.upper()), f"{split}_list", known)
        return folder

    return write


def write_layout(write_file, name, layout):
    for files in FILES[name].values():
        for file, seed in files:
            labels, rows = labels_of_file(name, seed), pixels(seed, 3, 3072)
            if layout == "binary":
                raw = records(labels, rows, COARSE if name == "cifar100" else None)
            elif name == "cifar100":
                raw = python2_pickle(rows, labels)
            else:
                raw = pickle.dumps({"data": rows, "labels": labels}, protocol=2)
            folder = write_file(name, layout, file, raw)
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("name", "layout"), FOLDERS)
@pytest.mark.parametrize("inside", [True, False])
def test_both_layouts(write_file, name, layout, split, inside):
    folder = write_layout(write_file, name, layout)
    data = load_dataset(name, folder if inside else folder.parent, split)
    files = FILES[name][split]
    assert data.labels.tolist() == [x for _, seed in files for x in labels_of_file(name, seed)]
    expected = np.concatenate([to_images(pixels(seed, 3, 3072)) for _, seed in files])
    assert (data.images.numpy() == expected).all()


def test_classes_and_statistics(write_file):
    folders = [write_layout(write_file, name, "binary") for name in FILES]
    ten, hundred = (load_dataset(n, f, "test") for n, f in zip(FILES, folders, strict=True))
    assert (ten.classes[0], ten.classes[9], len(ten.classes)) == ("airplane", "truck", 10)
    assert (hundred.classes[0], hundred.classes[41]) == ("apple", "lawn_mower")
    assert list(hundred.classes) == sorted(set(hundred.classes))
    assert len(hundred.classes) == 100
    assert hundred.mean == (0.5071, 0.4867, 0.4408)
    assert hundred.std == (0.2675, 0.2565, 0.2761)


ROWS = pixels(7, 3, 3072)
TEN, HUNDRED = records([3, 1, 2], ROWS), records(FINE, ROWS, COARSE)
BAD_BINARY = {
    "cut": ("cifar10", "data_batch_3", TEN[:-1], "data_batch_3.bin is cut short"),
    "missing": ("cifar10", "data_batch_5", None, "has no data_batch_5.bin"),
    "label": ("cifar10", "data_batch_2", records([4, 10, 0], ROWS), "labels run from .* to 10"),
    "cut record": (
        "cifar100", "train", HUNDRED[:-1], "expected 9,222 bytes.*of 3,074, found 9,221",
    ),
    "empty": ("cifar100", "train", b"", "expected 3,074 bytes.*found 0"),
    "of CIFAR-10": ("cifar100", "train", HUNDRED[: 3073 * 2], "expected 6,148.*found 6,146"),
    "fine label": (
        "cifar100", "train", records([99, 100, 0], ROWS, COARSE), "labels run from 0 to 100",
    ),
    "coarse label": (
        "cifar100", "train", records(FINE, ROWS, [0, 20, 3]), "coarse labels.*0 to 19, found 20",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "file", "raw", "words"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_damaged_binary_files_are_named(write_file, name, file, raw, words):
    folder = write_layout(write_file, name, "binary")
    if raw is None:
        (folder / f"{file}.bin").unlink()
    else:
        write_file(name, "binary", file, raw)
    with pytest.raises(DataError, match=words):
        load_dataset(name, folder, "train")


class Command:
    """Code that must not run when a file is opened."""

    def __reduce__(self):
        return eval, ("1 / 0",)


BAD_PICKLES = {
    "code": (pickle.dumps({"data": Command()}, 2), "it calls .*eval, which images do not need"),
    "cut": (python2_pickle(ROWS, FINE)[:-500], "is not a file of CIFAR-100's Python"),
    "no labels": (pickle.dumps({"data": ROWS}, 2), "fine_labels"),
    "fewer labels": (
        python2_pickle(ROWS, FINE[:2]), r"found \(3, 3072\) of uint8 and 2 labels",
    ),
    "floats": (
        pickle.dumps({"data": ROWS / 255, "fine_labels": FINE}, 2), "of float64 and 3 labels",
    ),
    "label": (python2_pickle(ROWS, [1, 2, 100]), "labels run from 1 to 100"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "words"), BAD_PICKLES.values(), ids=BAD_PICKLES)
def test_pickles_are_read_without_running_code(write_file, raw, words):
    write_layout(write_file, "cifar100", "python")
    folder = write_file("cifar100", "python", "train", raw)
    with pytest.raises(DataError, match=words):
        load_dataset("cifar100", folder, "train")


@pytest.mark.parametrize("name", FILES)
def test_files_with_another_check_sum_are_downloaded_again(write_file, name):
    folder = write_layout(write_file, name, "python")
    path = folder / FILES[name]["train"][-1][0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"no complete cifar-10.*failed.*no network"):
        load_dataset(name, folder.parent, "train")


@pytest.mark.usefixtures("write_file")
def test_without_files_or_folder(tmp_path):
    for name, title in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")):
        with pytest.raises(DataError, match=r"downloading it failed.*no network"):
            load_dataset(name, tmp_path, "test")
        with pytest.raises(DataError, match=f"{title} needs --data-dir"):
            load_dataset(name, None, "train")
        with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
            load_dataset(name, tmp_path / "nowhere", "train")
