"""Data sets from files in their true formats, batches, augmentation, labels."""

import gzip
import hashlib
import pickle
import struct
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from cktf.data import (
    DATASETS,
    DatasetLoader,
    ImageSet,
    MemoryLoader,
    crop_and_flip,
    dataset_info,
    fashion,
    labels_of,
    load_dataset,
)
from cktf.errors import DataError

RNG = np.random.default_rng


def pixels(seed, *shape):
    return RNG(seed).integers(0, 256, shape, dtype=np.uint8)


# Fashion-MNIST


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
def test_idx_files_become_padded_colour_images(tmp_path, split, prefix, below, packed):
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


# CIFAR-10

TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


def planes(seed, count):
    """Labels, and images as CIFAR stores them: all red values, then green, then blue."""
    return RNG(seed).integers(0, 10, count), pixels(seed, count, 3072)


def pictures(rows):
    """[N, 3072] planes as [N, 32, 32, 3], value by value."""
    found = np.empty((len(rows), 32, 32, 3), np.uint8)
    for n, y, x, channel in np.ndindex(found.shape):
        found[n, y, x, channel] = rows[n, channel * 1024 + y * 32 + x]
    return found


def records(labels, rows):
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, rows, strict=True))


@pytest.fixture
def binary(tmp_path):
    """A folder in the binary layout with two images a file."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for seed, name in enumerate([*TRAIN, "test_batch"]):
        (folder / f"{name}.bin").write_bytes(records(*planes(seed, 2)))
    return folder


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def python(tmp_path, monkeypatch, offline):
    """A folder in the Python layout; torchvision is told the check sums of its files."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for seed, name in enumerate([*TRAIN, "test_batch"]):
        labels, rows = planes(seed, 2)
        raw = pickle.dumps({"data": rows, "labels": labels.tolist()}, protocol=2)
        (folder / name).write_bytes(raw)
        sums[name] = hashlib.md5(raw).hexdigest()
    raw = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}, protocol=2)
    (folder / "batches.meta").write_bytes(raw)
    meta = {**CIFAR10.meta, "md5": hashlib.md5(raw).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    return folder


@pytest.mark.parametrize(("split", "seeds"), [("train", range(5)), ("test", [5])])
@pytest.mark.parametrize("layout", ["binary", "python"])
@pytest.mark.parametrize("inside", [True, False])
def test_cifar10_in_both_layouts(request, layout, split, seeds, inside):
    folder = request.getfixturevalue(layout)
    found = load_dataset("cifar10", folder if inside else folder.parent, split)
    parts = [planes(seed, 2) for seed in seeds]
    assert found.labels.tolist() == [int(label) for labels, _ in parts for label in labels]
    assert (found.images.numpy() == np.concatenate([pictures(rows) for _, rows in parts])).all()
    assert found.classes[0] == "airplane"
    assert found.classes[9] == "truck"


BAD_BINARY = {
    "cut": ("data_batch_3", records(*planes(0, 2))[:-1], "data_batch_3.bin is cut short"),
    "empty": ("data_batch_1", b"", "data_batch_1.bin is cut short"),
    "missing": ("data_batch_5", None, "has no data_batch_5.bin"),
    "label": ("data_batch_2", records([4, 10], planes(0, 2)[1]), "labels run from .* to 10"),
}


@pytest.mark.parametrize(("name", "raw", "words"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_damaged_binary_files_are_named(binary, name, raw, words):
    path = binary / f"{name}.bin"
    path.unlink()
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(DataError, match=words):
        load_dataset("cifar10", binary, "train")


def test_damaged_python_files_are_fetched_again_or_reported(python):
    path = python / "data_batch_4"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cifar-10-batches-bin.*failed.*no network"):
        load_dataset("cifar10", python.parent, "train")


def test_cifar10_offline_without_files(tmp_path, offline):
    with pytest.raises(DataError, match=r"downloading it failed.*no network"):
        load_dataset("cifar10", tmp_path, "test")


def test_cifar10_needs_a_directory():
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset("cifar10", None, "train")


# Names


def test_data_sets_are_known_by_name(mini):
    assert sorted(DATASETS) == ["cifar10", "fashion-mini", "fashion-mnist"]
    info = dataset_info("fashion-mini")
    assert (info.train, info.test) == (len(mini["train"]), len(mini["test"]))
    with pytest.raises(DataError, match=r"'cifar-10'.*Did you mean 'cifar10'"):
        dataset_info("cifar-10")


# Images in memory


def image_set(count=23, size=6, flip=True, seed=0):
    images = torch.from_numpy(pixels(seed, count, size, size, 3))
    labels = torch.arange(count) % 4
    return ImageSet(images, labels, "abcd", (0.5,) * 3, (0.2,) * 3, flip=flip, name="toy")


def test_image_set_gives_scaled_channel_first_pairs():
    data = image_set()
    image, label = data[7]
    assert label == 3
    assert image.shape == (3, 6, 6)
    for c, y, x in np.ndindex(3, 6, 6):
        assert float(image[c, y, x]) == pytest.approx(int(data.images[7, y, x, c]) / 255)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (3, [0, 1], "3 images and 2 labels"),
        (0, [], "at least one"),
        (2, [0, -1], "-1 to 0"),
        (2, [0, 4], "0 to 4"),
    ],
)
def test_image_set_refuses_labels_that_do_not_fit(images, labels, words):
    with pytest.raises(DataError, match=f"toy: .*{words}"):
        ImageSet(
            torch.zeros(images, 2, 2, 3, dtype=torch.uint8),
            torch.tensor(labels, dtype=torch.int64),
            "abcd", (0.5,), (0.2,), name="toy",
        )  # fmt: skip


# Crop and flip


def naive_crops(image, padding, flip=True):
    """Every possible outcome for one image, by the pixels' bytes: {bytes: (dy, dx, mirrored)}."""
    height, width, channels = image.shape
    outcomes = {}
    for dy, dx in np.ndindex(2 * padding + 1, 2 * padding + 1):
        for mirrored in (False, True) if flip else (False,):
            out = np.zeros((height, width, channels), image.dtype)
            for y, x in np.ndindex(height, width):
                from_y = y + dy - padding
                from_x = (width - 1 - x if mirrored else x) + dx - padding
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[y, x] = image[from_y, from_x]
            outcomes[out.tobytes()] = (dy, dx, mirrored)
    return outcomes


def naive_augmented(images, generator, padding, flip):
    """The definition, image by image, with the offsets that the generator gives."""
    count = len(images)
    offset = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(2, (count, 1), generator=generator).bool()
    done = []
    for i, image in enumerate(images.numpy()):
        wanted = (int(offset[0, i]), int(offset[1, i]), flip and bool(mirrored[i]))
        crops = {drawn: raw for raw, drawn in naive_crops(image, padding).items()}
        done.append(np.frombuffer(crops[wanted], image.dtype).reshape(image.shape))
    return np.stack(done)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("padding", "height", "width"), [(4, 8, 8), (2, 5, 7), (1, 4, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_against_a_loop(flip, padding, height, width, dtype):
    images = torch.from_numpy(pixels(2, 9, height, width, 3)).to(dtype)
    before = images.clone()
    found = crop_and_flip(images, torch.Generator().manual_seed(5), padding, flip)
    expected = naive_augmented(images, torch.Generator().manual_seed(5), padding, flip)
    assert found.dtype == dtype
    assert (found.numpy() == expected).all()
    assert torch.equal(images, before)


@pytest.mark.parametrize("flip", [True, False])
def test_every_offset_and_side_is_as_likely(flip):
    image = pixels(3, 4, 4, 1)
    outcomes = naive_crops(image, 1, flip)
    each = 200
    count = each * len(outcomes)
    batch = torch.from_numpy(image).expand(count, -1, -1, -1)
    found = crop_and_flip(batch, torch.Generator().manual_seed(0), 1, flip)
    seen = Counter(outcomes[out.numpy().tobytes()] for out in found)
    assert len(seen) == len(outcomes)
    # Five standard deviations of a binomial count.
    assert all(abs(n - each) < 5 * each**0.5 for n in seen.values())


# Batches from memory


def batches(loader, epoch=1):
    return list(loader.epoch(epoch))


def order(loader, epoch=1):
    return [i for batch in loader.epoch(epoch) for i in batch.index.tolist()]


def memory(train=True, seed=0, augment=False, **kwargs):
    return MemoryLoader(image_set(**kwargs), 5, train=train, seed=seed, augment=augment)


def mapped(train=True, seed=0):
    return DatasetLoader(image_set(), 5, train=train, seed=seed)


@pytest.mark.parametrize("make", [memory, mapped])
def test_training_shuffles_and_drops_the_short_batch(make):
    loader = make()
    assert len(loader) == 4
    for epoch in (1, 2):
        assert [len(b) for b in loader.epoch(epoch)] == [5] * 4
        assert len(set(order(loader, epoch))) == 20
    assert order(loader, 1) != order(loader, 2)
    left_out = {frozenset(range(23)) - frozenset(order(loader, epoch)) for epoch in range(5)}
    assert len(left_out) > 1


@pytest.mark.parametrize("make", [memory, mapped])
def test_testing_keeps_order_and_the_short_batch(make):
    loader = make(train=False)
    assert len(loader) == 5
    assert [len(b) for b in loader.epoch(1)] == [5, 5, 5, 5, 3]
    assert order(loader) == list(range(23))


@pytest.mark.parametrize("make", [memory, mapped])
def test_order_is_decided_by_seed_and_epoch_alone(make):
    expected = order(make(seed=3), 2)
    torch.rand(17)
    loader = make(seed=3)
    order(loader, 1)
    assert order(loader, 2) == expected
    others = [order(make(seed=seed), epoch) for seed, epoch in ((2, 3), (4, 2), (3, 3), (3, 1))]
    assert expected not in others
    assert len({tuple(o) for o in others}) == 4


@pytest.mark.parametrize("make", [memory, mapped])
def test_loading_leaves_the_global_generator_alone(make):
    before = torch.get_rng_state()
    batches(make())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [memory, mapped])
@pytest.mark.parametrize("train", [True, False])
def test_batches_hold_the_images_of_their_index(make, train):
    data = image_set()
    for batch in make(train=train).epoch(1):
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for image, label, index in zip(batch.images, batch.labels, batch.index, strict=True):
            expected = data.images[index].numpy().transpose(2, 0, 1) / 255
            assert image.numpy() == pytest.approx(expected)
            assert label == index % 4


def test_augmentation_repeats_with_the_epoch_and_leaves_the_images_alone():
    loader = memory(augment=True)
    before = loader.data.images.clone()
    first, again, next_epoch = (torch.cat([b.images for b in loader.epoch(e)]) for e in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert torch.equal(loader.data.images, before)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_mirrors_only_where_the_data_allow_it(flip):
    data = image_set(count=40, flip=flip)
    mirrored = set()
    for batch in MemoryLoader(data, 10, train=True, augment=True).epoch(1):
        for image, index in zip(batch.images, batch.index, strict=True):
            outcomes = naive_crops(data.images[index].numpy(), 4)
            found = (image * 255).round().byte().permute(1, 2, 0).contiguous()
            if found.any():  # a crop may miss so small an image
                mirrored.add(outcomes[found.numpy().tobytes()][2])
    assert mirrored == ({True, False} if flip else {False})


# Batches from any data set

COLOUR = pixels(4, 4, 5, 5, 3)
GREY = pixels(5, 4, 5, 5)
KINDS = {
    "picture": (Image.fromarray, COLOUR),
    "array": (lambda a: a, COLOUR),
    "bytes": (lambda a: torch.from_numpy(a.transpose(2, 0, 1).copy()), COLOUR),
    "floats": (lambda a: torch.from_numpy(a.transpose(2, 0, 1) / np.float32(255)), COLOUR),
    "float array": (lambda a: (a / 255).astype(np.float32), COLOUR),
    "grey picture": (Image.fromarray, GREY),
    "grey array": (lambda a: a, GREY),
    "grey bytes": (lambda a: torch.from_numpy(a.copy())[None], GREY),
}


@pytest.fixture
def always_warn():
    """PyTorch says some warnings once in a process; a test is to hear them."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize(("convert", "arrays"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("pair", [tuple, list])
def test_images_of_any_kind(convert, arrays, pair, always_warn):
    data = [pair((convert(array), label)) for label, array in enumerate(arrays)]
    (batch,) = DatasetLoader(data, 4, train=False).epoch(1)
    stacked = arrays if arrays.ndim == 4 else arrays[..., None]
    assert batch.images.dtype == torch.float32
    assert batch.images.numpy() == pytest.approx(stacked.transpose(0, 3, 1, 2) / 255)
    assert batch.labels.tolist() == [0, 1, 2, 3]


def spoiled(value):
    image = torch.zeros(3, 4, 4)
    image[1, 2, 3] = value
    return image


BAD_SAMPLES = {
    "nan": ((spoiled(float("nan")), 0), "image of sample 2 holds NaN"),
    "infinity": ((spoiled(float("inf")), 0), "image of sample 2 holds NaN"),
    "image alone": (spoiled(0.0), "sample 2 is a Tensor"),
    "three": ((spoiled(0.0), 0, 1), r"\(image, label\); sample 2"),
    "mapping": ({"image": spoiled(0.0), "label": 0}, "sample 2 is a dict"),
    "no image": (("cat.png", 0), "sample 2 is a str"),
    "nothing": ((None, 0), "sample 2 is a NoneType"),
    "flat tensor": ((torch.zeros(4, 4), 0), r"sample 2 has shape \(4, 4\)"),
    "flat array": ((np.zeros(4), 0), "sample 2 is a ndarray"),
    "word as label": ((spoiled(0.0), "cat"), "label of sample 2 is 'cat'"),
    "no label": ((spoiled(0.0), None), "label of sample 2 is None"),
}


@pytest.mark.parametrize(("sample", "words"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_a_bad_sample_is_named(sample, words):
    good = (torch.zeros(3, 4, 4), 0)
    with pytest.raises(DataError, match=words):
        batches(DatasetLoader([good, good, sample, good], 2, train=False))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_give_the_same_batches():
    alone, helped = (batches(DatasetLoader(image_set(), 5, train=True, workers=w)) for w in (0, 1))
    assert len(alone) == len(helped)
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)


# Labels


class Plain:
    """A data set that only gives samples."""

    def __len__(self):
        return 5

    def __getitem__(self, position):
        return None, [2, 0, 1, 1, 3][position]


class Unreadable(Plain):
    """A data set whose samples need not be read for their labels."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return max(len(values) for values in vars(self).values())

    def __getitem__(self, position):
        raise AssertionError("was read")


IMAGES_OF_FIVE = torch.zeros(5, 3, 2, 2)
LABELLED = {
    "plain": Plain(),
    "targets list": Unreadable(targets=[2, 0, 1, 1, 3]),
    "targets tensor": Unreadable(targets=torch.tensor([2, 0, 1, 1, 3], dtype=torch.int32)),
    "labels array": Unreadable(labels=np.array([2, 0, 1, 1, 3])),
    "tensors": TensorDataset(IMAGES_OF_FIVE, torch.tensor([2, 0, 1, 1, 3])),
    "subset": Subset(Unreadable(targets=[9, 2, 0, 9, 1, 1, 3]), [1, 2, 4, 5, 6]),
    "subset of subset": Subset(
        Subset(Unreadable(targets=[3, 9, 1, 0, 2]), [4, 3, 2, 0]), [0, 1, 2, 2, 3]
    ),
    "subset of tensors": Subset(
        TensorDataset(IMAGES_OF_FIVE, torch.tensor([1, 3, 0, 2, 9])), [3, 2, 0, 0, 1]
    ),
}


@pytest.mark.parametrize("data", LABELLED.values(), ids=LABELLED)
def test_labels_of(data):
    found = labels_of(data)
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1, 1, 3]


@pytest.mark.parametrize(
    "attributes",
    [{"labels": ["cat", "dog", "horse"]}, {"targets": [7] * 5, "target_transform": abs}],
    ids=["names of classes", "transformed targets"],
)
def test_attributes_that_are_not_the_labels_of_samples(attributes):
    data = Plain()
    vars(data).update(attributes)
    assert labels_of(data).tolist() == [2, 0, 1, 1, 3]


def test_labels_that_are_no_numbers_are_named():
    with pytest.raises(DataError, match="label of sample 1 is 'dog'"):
        labels_of([(None, 0), (None, "dog")])


def test_labels_of_library_data(mini):
    assert torch.equal(labels_of(mini["test"]), mini["test"].labels)


def test_paths_may_be_relative(tmp_path, monkeypatch):
    write_fashion(tmp_path / "here", pixels(0, 2, 28, 28), np.arange(2), "t10k")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("fashion-mnist", Path("here"), "test")) == 2
