"""Images in memory, augmentation, batches from any data set, labels."""

import io
import os
import random
import signal
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import pixels
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from cktf.batch import Batch
from cktf.data import (
    DatasetLoader,
    ImageSet,
    MemoryLoader,
    crop_and_flip,
    get_labels,
)
from cktf.data.loaders import _finish_batches
from cktf.errors import DataError
from cktf.recipes import build_test_loader

# Images in memory


def image_set(count=23, size=6, flip=True, seed=0):
    images = torch.from_numpy(pixels(seed, count, size, size, 3))
    labels = torch.from_numpy(np.arange(count) % 4)
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
        (2, [0.0, 1.7], "labels of torch.float32"),
    ],
)
def test_image_set_refuses_labels_that_do_not_fit(images, labels, words):
    with pytest.raises(DataError, match=f"toy: .*{words}"):
        ImageSet(
            torch.zeros(images, 2, 2, 3, dtype=torch.uint8),
            torch.tensor(labels) if labels else torch.zeros(0).long(),
            "abcd", (0.5,), (0.2,), name="toy",
        )  # fmt: skip


# Crop and flip


def naive_crops(image, padding, flip=True):
    """All possible crops of one image: {bytes of the crop: (dy, dx, mirrored)}."""
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
    """The definition, image by image, with the generator's offsets."""
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
def test_offsets_and_flips_are_uniform(flip):
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
def test_seed_and_epoch_decide_the_order(make):
    expected = order(make(seed=3), 2)
    torch.rand(17)
    loader = make(seed=3)
    order(loader, 1)
    assert order(loader, 2) == expected
    others = [order(make(seed=seed), epoch) for seed, epoch in ((2, 3), (4, 2), (3, 3), (3, 1))]
    assert expected not in others
    assert len({tuple(o) for o in others}) == 4


@pytest.mark.parametrize("make", [memory, mapped])
def test_loading_leaves_the_global_rng_unchanged(make):
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


def test_augmentation_repeats_with_the_epoch():
    loader = memory(augment=True)
    before = loader.data.images.clone()
    first, again, next_epoch = (torch.cat([b.images for b in loader.epoch(e)]) for e in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert torch.equal(loader.data.images, before)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def generator_of(*entropy):
    """The generator of a seed and an epoch: a hash of both."""
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


@pytest.mark.parametrize(("size", "padding"), [(6, 4), (40, 5)])
def test_an_epoch_by_definition(size, padding):
    """A permutation, then crops of each batch; a run that goes on draws what it drew before."""
    data, generator = image_set(size=size), generator_of(3, 2)
    permuted = torch.randperm(23, generator=generator)
    found = batches(MemoryLoader(data, 5, train=True, augment=True, seed=3), epoch=2)
    for batch, index in zip(found, permuted[:20].split(5), strict=True):
        cropped = crop_and_flip(data.images[index], generator, padding)
        assert torch.equal(batch.index, index)
        assert torch.equal(batch.images, cropped.permute(0, 3, 1, 2).float() / 255)
    assert order(DatasetLoader(data, 5, train=True, seed=3), 2) == permuted[:20].tolist()


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_if_flip_is_set(flip):
    data = image_set(count=40, flip=flip)
    mirrored = set()
    for batch in MemoryLoader(data, 10, train=True, augment=True).epoch(1):
        for image, index in zip(batch.images, batch.index, strict=True):
            outcomes = naive_crops(data.images[index].numpy(), 4)
            found = (image * 255).round().byte().permute(1, 2, 0).contiguous()
            if found.any():  # a crop may miss so small an image
                mirrored.add(outcomes[found.numpy().tobytes()][2])
    assert mirrored == ({True, False} if flip else {False})


# Batches on a device


def loaders_of_all_kinds():
    data, gray = image_set(size=40), image_set(size=5)
    gray = replace(gray, images=gray.images[..., :1], mean=(0.5,), std=(0.2,))
    pairs = [
        (image.numpy(), int(label)) for image, label in zip(data.images, data.labels, strict=True)
    ]
    floats = TensorDataset(
        torch.rand(23, 3, 4, 4, generator=torch.Generator().manual_seed(0)), data.labels
    )
    return {
        "random crops": MemoryLoader(data, 5, train=True, augment=True, seed=3),
        "views": MemoryLoader(gray, 5, train=True, augment=True, seed=3, views=2),
        "test": MemoryLoader(data, 5, train=False),
        "without labels": MemoryLoader(data.without_labels(), 5, train=True),
        "read one by one": DatasetLoader(data, 5, train=True),
        "pairs": DatasetLoader(pairs, 5, train=True),
        "floats": DatasetLoader(floats, 5, train=False),
        "no labels": DatasetLoader(floats, 5, train=True, labeled=False),
    }


@pytest.mark.parametrize("share", [0.25, 0], ids=["copied once", "copied batch by batch"])
@pytest.mark.parametrize("kind", loaders_of_all_kinds())
def test_batches_have_the_same_bits_on_every_device(kind, share, device, monkeypatch):
    """A GPU makes several batches at once, here two."""
    loader = loaders_of_all_kinds()[kind]
    epochs = [{"number": 2}, {"number": 3, "start": 1}, {"number": 0, "cover": True}]
    expected = [list(loader.epoch(**epoch)) for epoch in epochs]
    monkeypatch.setattr("cktf.data.loaders._GPU_SHARE", share)
    monkeypatch.setattr("cktf.data.loaders._count_at_once", lambda *args: 2)
    for epoch, wanted in zip(epochs, expected, strict=True):
        found = list(loader.epoch(**epoch, device=device))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.images.device.type == one.index.device.type == device.type
            assert one.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(one.images.cpu(), other.images)
            assert torch.equal(one.index.cpu(), other.index)
            assert (one.view, one.source) == (other.view, other.source)
            assert (one.labels is None) == (other.labels is None)
            if one.labels is not None:
                assert one.labels.device == one.images.device
                assert torch.equal(one.labels.cpu(), other.labels)
            assert one.host_index.device.type == "cpu"
            assert torch.equal(one.host_index, other.index)


def test_every_byte_becomes_the_same_float_on_every_device(device):
    """As a division in IEEE arithmetic; a product with 1 / 255 differs for 126 of 256 bytes."""
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    data = ImageSet(images, torch.arange(256) % 2, "ab", (0.5,), (0.2,))
    (batch,) = MemoryLoader(data, 256, train=False).epoch(0, device=device)
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert (batch.images.cpu().numpy().ravel() == expected).all()


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.25, 0])
def test_loading_never_waits_for_the_gpu(share, monkeypatch):
    monkeypatch.setattr("cktf.data.loaders._GPU_SHARE", share)
    monkeypatch.setattr("cktf.data.loaders._BYTES_AT_ONCE", 1)
    for loader in loaders_of_all_kinds().values():
        batches = loader.epoch(1, device=torch.device("cuda"))
        next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            rest = list(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(rest) >= 3


@pytest.mark.gpu
def test_copies_to_a_gpu_that_is_busy_arrive_whole(monkeypatch):
    """Each batch is read after a long computation, when the memory of others may be reused."""
    monkeypatch.setattr("cktf.data.loaders._GPU_SHARE", 0)
    loader = MemoryLoader(image_set(count=400, size=32), 20, train=True, augment=True)
    expected, busy = (
        [b.images.sum() for b in loader.epoch(1)],
        torch.rand(2000, 2000, device="cuda"),
    )
    sums = []
    for batch in loader.epoch(1, device=torch.device("cuda")):
        for _ in range(10):
            busy = busy @ busy / 1000
        sums.append(batch.images.double().sum())
        del batch
    for found, wanted in zip(sums, expected, strict=True):
        assert float(found) == pytest.approx(float(wanted), rel=1e-5)


CUDA = torch.device("cuda")


@pytest.fixture
def fake_cuda(monkeypatch):
    """A GPU that is not there: fake tensors have a device, and raise where a value is read."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize(("share", "fits"), [(1 / 4, True), (1 / 5, False)])
def test_a_set_is_copied_to_the_gpu_once_if_it_takes_a_share_of_its_memory(
    share, fits, fake_cuda, monkeypatch
):
    data = image_set()
    free = 4 * data.images.nbytes
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr("cktf.data.loaders._GPU_SHARE", share)
    loader = MemoryLoader(data, 5, train=True)
    with fake_cuda:
        (images, labels), again = loader._images_on(CUDA), loader._images_on(CUDA)
    assert {images.device.type, labels.device.type} == {"cuda" if fits else "cpu"}
    assert again[0] is images
    assert data.images.device.type == "cpu"


@pytest.mark.parametrize("views", [0, 2])
def test_no_batch_of_a_set_on_the_gpu_is_read_or_copied_back(views, fake_cuda, monkeypatch):
    monkeypatch.setattr("cktf.data.loaders._fits_on_gpu", lambda *args: True)
    loader = MemoryLoader(image_set(), 5, train=True, augment=True, views=views)
    with fake_cuda:
        found = list(loader.epoch(1, start=1, device=CUDA))
    assert [list(batch.images.shape) for batch in found] == [[5, 3, 6, 6]] * 3
    for batch in found:
        assert {t.device.type for t in (batch.images, batch.labels, batch.index)} == {"cuda"}
        assert batch.host_index.device.type == "cpu"


@pytest.mark.parametrize("labels", [True, False])
def test_the_memory_of_a_copied_batch_stays_until_it_was_used(labels, fake_cuda, monkeypatch):
    """What PyTorch is told of its two streams."""
    told = []
    consumer = SimpleNamespace(wait_stream=lambda stream: told.append(("wait", stream)))
    to = Batch.to

    def copy(batch, device):
        told.append("copy")
        return to(batch, device)

    monkeypatch.setattr("cktf.data.loaders._copy_stream", lambda device: "side")
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext(told.append(stream)))
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: consumer)
    monkeypatch.setattr(Batch, "to", copy)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: told.append(stream))
    images, index = image_set().images[:5], torch.arange(5)
    with fake_cuda:
        given = iter([Batch(images, index if labels else None, index)])
        (batch,) = _finish_batches(given, CUDA)
    assert told == ["side", "copy", ("wait", "side"), *[consumer] * (3 if labels else 2)]
    assert (list(batch.images.shape), batch.images.dtype) == ([5, 3, 6, 6], torch.float32)
    assert batch.images.device.type == "cuda"
    assert batch.host_index is index


def test_streamed_images_travel_to_a_gpu_as_bytes():
    loader = DatasetLoader(image_set(), 2, train=False)
    for device, dtype in ((CUDA, torch.uint8), (torch.device("cpu"), torch.float32)):
        batches = loader._load_image_set([[0, 1]], torch.Generator(), (0, 0), 0, device)
        assert next(batches).images.dtype == dtype


# Batches from any data set

COLOR = pixels(4, 4, 5, 5, 3)
GRAY = pixels(5, 4, 5, 5)
KINDS = {
    "picture": (Image.fromarray, COLOR),
    "array": (lambda a: a, COLOR),
    "bytes": (lambda a: torch.from_numpy(a.transpose(2, 0, 1).copy()), COLOR),
    "floats": (lambda a: torch.from_numpy(a.transpose(2, 0, 1) / np.float32(255)), COLOR),
    "float array": (lambda a: (a / 255).astype(np.float32), COLOR),
    "gray picture": (Image.fromarray, GRAY),
    "gray array": (lambda a: a, GRAY),
    "array, channels first": (lambda a: a.transpose(2, 0, 1), COLOR),
    "gray array, channels first": (lambda a: a[None], GRAY),
    "gray bytes": (lambda a: torch.from_numpy(a.copy())[None], GRAY),
}


@pytest.fixture
def always_warn():
    """PyTorch issues some warnings once per process; here every time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.parametrize(("convert", "arrays"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("pair", [tuple, list])
def test_kinds_of_images(convert, arrays, pair, always_warn):
    data = [pair((convert(array), label)) for label, array in enumerate(arrays)]
    (batch,) = DatasetLoader(data, 4, train=False).epoch(1)
    stacked = arrays if arrays.ndim == 4 else arrays[..., None]
    assert batch.images.dtype == torch.float32
    assert batch.images.numpy() == pytest.approx(stacked.transpose(0, 3, 1, 2) / 255)
    assert batch.labels.tolist() == [0, 1, 2, 3]


def palette():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    return picture


MODES = {
    "palette": (palette(), [[10, 20, 30], [200, 100, 50]]),
    "transparent": (Image.new("RGBA", (2, 1), (9, 9, 9, 0)), [[255] * 3] * 2),
    "black and white": (Image.new("1", (2, 1), 1), [[255], [255]]),
    "16 bits": (Image.fromarray(np.full((1, 2), 257, np.uint16)), [[1], [1]]),
}


@pytest.mark.parametrize(("picture", "expected"), MODES.values(), ids=MODES)
def test_modes_of_pil_images(picture, expected):
    (batch,) = DatasetLoader([(picture, 0)], 1, train=False).epoch(1)
    assert (batch.images[0, :, 0].T * 255).round().tolist() == expected


def test_pil_images_of_unknown_range_are_named():
    with pytest.raises(DataError, match=r"sample 0 cannot be converted .*32-bit integers"):
        batches(DatasetLoader([(Image.new("I", (2, 1), -1), 0)], 1, train=False))


def spoiled(value):
    image = torch.zeros(3, 4, 4)
    image[1, 2, 3] = value
    return image


def truncated_picture():
    file = io.BytesIO()
    Image.fromarray(pixels(0, 64, 64, 3)).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:500]))


BAD_SAMPLES = {
    "nan": ((spoiled(float("nan")), 0), "image of sample 2 holds NaN"),
    "infinity": ((spoiled(float("inf")), 0), "image of sample 2 holds NaN"),
    "image alone": (spoiled(0.0), "sample 2 is a Tensor"),
    "three": (
        (spoiled(0.0), 0, 1),
        r"\(image, label\); sample 2 is a tuple of 3 \(Tensor, int, int",
    ),
    "mapping": ({"image": spoiled(0.0), "label": 0}, "sample 2 is a dict with the keys image, la"),
    "no image": (("cat.png", 0), "sample 2 is a str"),
    "nothing": ((None, 0), "sample 2 is a NoneType"),
    "flat tensor": ((torch.zeros(4, 4), 0), r"sample 2 has shape \(4, 4\)"),
    "flat array": ((np.zeros(4), 0), "sample 2 is a ndarray"),
    "word as label": ((spoiled(0.0), "cat"), "label of sample 2 is 'cat'"),
    "no label": ((spoiled(0.0), None), "label of sample 2 is None"),
    "channels first or last": ((np.zeros((3, 9, 1)), 0), r"may be \[H, W, C\] or \[C, H, W\]"),
    "truncated picture": ((truncated_picture(), 0), "sample 2 cannot be converted .*truncated"),
}


@pytest.mark.parametrize(("sample", "words"), BAD_SAMPLES.values(), ids=BAD_SAMPLES)
def test_a_bad_sample_is_named(sample, words):
    good = (torch.zeros(3, 4, 4), 0)
    with pytest.raises(DataError, match=words):
        batches(DatasetLoader([good, good, sample, good], 2, train=False))


@pytest.mark.parametrize(("shape", "channels"), [((4, 9, 9), 4), ((9, 9, 4), 4), ((9, 9, 7), 7)])
def test_arrays_of_other_channels(shape, channels):
    """A dimension of four is that of RGBA; of two larger ones the last holds the channels."""
    (batch,) = DatasetLoader([(np.zeros(shape), 0)], 1, train=False).epoch(1)
    assert batch.images.shape == (1, channels, 9, 9)


def test_images_of_other_channels_are_named():
    gray, color = ((Image.new(mode, (4, 4)), 0) for mode in ("L", "RGB"))
    for data in ([gray, gray, color], [color, gray, color]):
        with pytest.raises(DataError, match=r"Convert all images .*convert\('RGB'\)"):
            batches(DatasetLoader(data, 2, train=False))


class Fails:
    """A data set whose third sample fails; `action` does it."""

    def __init__(self, action):
        self.action = action

    def __len__(self):
        return 4

    def __getitem__(self, position):
        if position == 2:
            self.action()
        return torch.zeros(3, 4, 4), 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read_is_named(workers):
    data = Fails({}.popitem)
    with pytest.raises(DataError, match=r"Sample 2 .*KeyError: .*test_loaders.py, line \d+"):
        batches(DatasetLoader(data, 2, train=False, workers=workers))
    with pytest.raises(DataError, match="Sample 2"):
        get_labels(data)


@pytest.mark.parametrize("sample", [(None, 0), (spoiled(float("nan")), 0), (spoiled(0.0), 0.5), 1])
def test_a_sample_is_named_by_its_position_in_the_full_set(sample):
    full = [(torch.zeros(3, 4, 4), 0)] * 5 + [sample]
    for data in (Subset(full, [5, 0]), Subset(Subset(full, [0, 5]), [1])):
        with pytest.raises(DataError, match="sample 5 "):
            batches(DatasetLoader(data, 1, train=False))
    with pytest.raises(DataError, match="Sample 2 of the data set cannot be read: KeyError"):
        batches(DatasetLoader(Subset(Fails({}.popitem), [2]), 1, train=False))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_that_is_killed():
    data = Fails(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"A process that loads images .*data.workers=0"):
        batches(DatasetLoader(data, 2, train=False, workers=1))


TEST_SETS = {
    "small": ((torch.zeros(3, 64, 64), 0), 500),
    "larger": ((torch.zeros(3, 640, 320), 0), 10),
    "picture": ((Image.new("RGB", (640, 320)), 0), 10),
    "array": ((np.zeros((640, 320), np.uint8), 0), 10),
    "huge": ((torch.zeros(1, 2048, 2048), 0), 1),
    "image alone": (torch.zeros(3, 640, 320), 10),
    "mapping": ({"image": torch.zeros(3, 640, 320)}, 500),
    "no image": (("cat.png", 0), 500),
}


@pytest.mark.parametrize(("sample", "size"), TEST_SETS.values(), ids=TEST_SETS)
def test_batch_size_of_tests_follows_the_image_size(sample, size):
    assert build_test_loader([sample] * 3).batch_size == size


def test_test_images_are_neither_augmented_nor_shuffled():
    data = image_set()
    (batch,) = build_test_loader(data).epoch(1)
    assert torch.equal(batch.images, data.images.permute(0, 3, 1, 2).float() / 255)
    assert torch.equal(batch.index, torch.arange(23))


class Drawn:
    """Images that are random at every access."""

    def __len__(self):
        return 3

    def __getitem__(self, position):
        return torch.rand(3, 640, 320), 0


def test_choosing_the_batch_size_leaves_the_rng_unchanged():
    before = torch.random.get_rng_state()
    assert build_test_loader(Drawn()).batch_size == 10
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_give_the_same_batches():
    alone, helped = (batches(DatasetLoader(image_set(), 5, train=True, workers=w)) for w in (0, 1))
    assert len(alone) == len(helped)
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.index, other.index)


class Draws:
    """Images of three pixels, drawn from PyTorch's, NumPy's and Python's global generators."""

    def __len__(self):
        return 4

    def __getitem__(self, position):
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor(drawn).view(3, 1, 1), 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_draws_in_workers_differ_by_seed_epoch_and_position():
    """And by nothing else: a transform of the user's that draws augments anew in every epoch."""

    def drawn(seed, epoch):
        loader = DatasetLoader(Draws(), 2, train=True, workers=1, seed=seed)
        found = batches(loader, epoch)
        order = torch.cat([batch.index for batch in found]).argsort()
        return torch.cat([batch.images for batch in found])[order].view(4, 3)

    every = [drawn(seed, epoch) for seed, epoch in ((0, 1), (0, 2), (1, 1))]
    for of_a_generator in torch.cat(every).T:
        assert len(set(of_a_generator.tolist())) == 3 * 4
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    assert torch.equal(drawn(0, 1), every[0])


# Labels


class Plain:
    """A data set without an attribute for labels."""

    def __len__(self):
        return 5

    def __getitem__(self, position):
        return None, [2, 0, 1, 1, 3][position]


class Unreadable(Plain):
    """A data set whose labels are an attribute; reading a sample fails."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return max(len(values) for values in vars(self).values())

    def __getitem__(self, position):
        raise AssertionError("was read")


IMAGES_OF_FIVE = torch.zeros(5, 3, 2, 2)
LABELED_SETS = {
    "plain": Plain(),
    "targets list": Unreadable(targets=[2, 0, 1, 1, 3]),
    "targets tensor": Unreadable(targets=torch.tensor([2, 0, 1, 1, 3], dtype=torch.int32)),
    "labels array": Unreadable(labels=np.array([2, 0, 1, 1, 3])),
    "tensors of a column": TensorDataset(IMAGES_OF_FIVE, torch.tensor([[2.0], [0], [1], [1], [3]])),
    "tensors": TensorDataset(IMAGES_OF_FIVE, torch.tensor([2, 0, 1, 1, 3])),
    "subset": Subset(Unreadable(targets=[9, 2, 0, 9, 1, 1, 3]), [1, 2, 4, 5, 6]),
    "subset of subset": Subset(
        Subset(Unreadable(targets=[3, 9, 1, 0, 2]), [4, 3, 2, 0]), [0, 1, 2, 2, 3]
    ),
    "several together": ConcatDataset(
        [Unreadable(targets=[2, 0, 1]), TensorDataset(IMAGES_OF_FIVE[:2], torch.tensor([1, 3]))]
    ),
    "subset of tensors": Subset(
        TensorDataset(IMAGES_OF_FIVE, torch.tensor([1, 3, 0, 2, 9])), [3, 2, 0, 0, 1]
    ),
}


@pytest.mark.parametrize("data", LABELED_SETS.values(), ids=LABELED_SETS)
def test_get_labels(data):
    found = get_labels(data)
    assert found.dtype == torch.int64
    assert found.tolist() == [2, 0, 1, 1, 3]


@pytest.mark.parametrize(
    "attributes",
    [{"labels": ["cat", "dog", "horse"]}, {"targets": [7] * 5, "target_transform": abs}],
    ids=["names of classes", "transformed targets"],
)
def test_attributes_that_are_not_labels(attributes):
    data = Plain()
    vars(data).update(attributes)
    assert get_labels(data).tolist() == [2, 0, 1, 1, 3]


def test_labels_that_are_no_numbers_are_named():
    with pytest.raises(DataError, match="label of sample 1 is 'dog'"):
        get_labels([(None, 0), (None, "dog")])


@pytest.mark.parametrize("sample", [{"image": None, "label": 0}, torch.zeros(3, 2, 2)])
def test_samples_that_are_no_pairs_are_named(sample):
    with pytest.raises(DataError, match=r"\(image, label\); sample 1 is a (dict|Tensor).* Wrap it"):
        get_labels([(None, 0), sample])


CLASS_NUMBERS = {
    "whole floats": [1.0, 0.0],
    "booleans": [True, False],
    "digits": ["1", "0"],
    "numpy": [np.uint8(1), np.float32(0)],
    "0-dimensional": [np.array(1), torch.tensor(0.0, dtype=torch.bfloat16)],
    "alone in a list": [[1], (0,)],
    "alone in an array": [np.array([[1]]), torch.tensor([0])],
}


@pytest.mark.parametrize("labels", CLASS_NUMBERS.values(), ids=CLASS_NUMBERS)
def test_labels_that_are_class_numbers(labels):
    data = [(torch.zeros(3, 2, 2), label) for label in labels]
    assert get_labels(data).tolist() == [1, 0]
    (batch,) = DatasetLoader(data, 2, train=False).epoch(1)
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [1, 0]


NO_CLASS_NUMBERS = {
    "fraction": (1.7, "regression"),
    "fraction in an array": (np.array([0.5]), "regression"),
    "fraction in a tensor": (torch.tensor(0.5), "regression"),
    "nan": (float("nan"), "Number the classes"),
    "infinity": (torch.tensor(float("inf")), "Number the classes"),
    "negative": (-100, "leave out samples without a class"),
    "too large": (2**70, "Number the classes"),
    "complex": (1j, "Number the classes"),
    "mapping": ({"boxes": []}, "Number the classes"),
    "empty": ([], "multi-label"),
    "one-hot": (torch.tensor([0.0, 1.0, 0.0]), r"label.argmax\(\)"),
    "multi-hot": (np.array([1, 1, 0]), "multi-label"),
    "mixed": ([0.3, 0.7], "mixed labels"),
    "mask": (np.zeros((4, 4), np.uint8), "not supported"),
    "words": (["cat", "dog"], "multi-label"),
}


@pytest.mark.parametrize(("label", "words"), NO_CLASS_NUMBERS.values(), ids=NO_CLASS_NUMBERS)
def test_labels_that_are_no_class_numbers(label, words):
    data = [(torch.zeros(3, 2, 2), 0), (torch.zeros(3, 2, 2), label)]
    with pytest.raises(DataError, match=rf"(?s)label of sample 1 is .*{words}"):
        get_labels(data)
    with pytest.raises(DataError, match="label of sample 1 is"):
        batches(DatasetLoader(data, 2, train=False))


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([0.0, 1.7]), torch.tensor([0.0, float("nan")]), torch.eye(2)],
    ids=["fractions", "nan", "one-hot"],
)
def test_tensors_of_labels_that_are_no_class_numbers(labels):
    data = TensorDataset(torch.zeros(2, 3, 2, 2), labels)
    for part in (data, Subset(data, [1, 0]), ConcatDataset([data, data])):
        with pytest.raises(DataError, match="label of sample"):
            get_labels(part)


def test_labels_attributes_of_other_types():
    """A method, a number and fractions are no labels of samples."""
    for values in (lambda: None, 10, [0.5] * 5, torch.eye(5)):
        data = Plain()
        data.labels = values
        assert get_labels(data).tolist() == [2, 0, 1, 1, 3]


# The user's defaults


def loaders():
    data = image_set()
    pairs = [(array.numpy(), np.float64(2)) for array in data.images]
    return [
        MemoryLoader(data, 5, train=True, augment=True),
        MemoryLoader(data, 5, train=True, augment=True, views=2),
        DatasetLoader(data, 5, train=False),
        DatasetLoader(pairs, 5, train=True),
        DatasetLoader(pairs, 5, train=True, workers=1),
    ]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_loaders_are_independent_of_the_users_defaults(users_default):
    found = [batch for loader in loaders() for batch in batches(loader)]
    labels = get_labels([(None, 1.0), (None, 2)])
    with torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        expected = [batch for loader in loaders() for batch in batches(loader)]
        assert labels.tolist() == [1, 2]
        for one, other in zip(found, expected, strict=True):
            for name in ("images", "labels", "index"):
                tensor, wanted = getattr(one, name), getattr(other, name)
                assert (tensor.dtype, tensor.device) == (wanted.dtype, wanted.device)
                assert torch.equal(tensor, wanted)
