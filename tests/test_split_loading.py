"""Images loaded into memory or streamed: broken files, augmentation, subsets."""

import numpy as np
import pytest
import torch
from image_files import encode_image, smooth_image, write_jpegs
from PIL import Image
from torchvision.transforms import v2

from cktf.data import (
    DatasetLoader,
    MemoryLoader,
    ReadOptions,
    StreamedImages,
    load_dataset,
    load_splits,
)
from cktf.errors import DataError


def load(root, part="train", **options):
    return load_dataset(f"imagefolder:{root}", None, part, ReadOptions(**options))


STREAM = {"budget": 0}

# Broken images

GOOD = encode_image(smooth_image(0))
HEAD = GOOD.index(b"\xff\xda")  # where the pixels begin
BROKEN = {
    "truncated": (GOOD[: HEAD + 40], "image file is truncated"),
    "only a head": (GOOD[:HEAD], "cannot load this image|truncated|broken"),
    "corrupt": (b"\0" * 20 + GOOD[20:], "not an image"),
    "text": (b"<html>404</html>", "not an image"),
    "empty": (b"", "not an image"),
    "truncated PNG": (encode_image(smooth_image(0), "PNG")[:-60], "truncated|broken"),
    "truncated GIF": (encode_image(smooth_image(0), "GIF")[:-200], "truncated|broken"),
    "floats": (encode_image(Image.new("F", (9, 9)), "TIFF"), "32-bit floats"),
}


@pytest.mark.parametrize(("raw", "why"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_a_broken_image_is_named_with_its_reason(split_folders, raw, why, reading):
    (split_folders / "train" / "dog" / "bad.jpg").write_bytes(raw)
    words = rf"1 of 9 are not: \S*train/dog/bad.jpg \(.*({why}).*\)\. Repair.*data.skip_broken=true"
    with pytest.raises(DataError, match=words):
        load(split_folders, **reading)


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_all_broken_images_are_counted_and_ten_are_named(split_folders, reading):
    for i in range(9):
        (split_folders / "train" / "cat" / f"bad{i}.jpg").write_bytes(GOOD[:300])
    for i in range(4):
        (split_folders / "val" / "dog" / f"bad{i}.jpg").write_bytes(GOOD[:300])
    with pytest.raises(DataError) as caught:
        load_splits(f"imagefolder:{split_folders}", None, ("train", "test"), ReadOptions(**reading))
    message = str(caught.value)
    assert "13 of 25 are not" in message
    assert message.count("/bad") == 10
    assert "and 3 more" in message


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_broken_images_are_skipped_on_request_and_counted(split_folders, reading):
    intact = load(split_folders, **reading)
    for name in ("cat/000a.jpg", "dog/zzz.jpg"):
        (split_folders / "train" / name).write_bytes(GOOD[:300])
    found = load(split_folders, skip_broken=True, **reading)
    assert found.describe().endswith("; 2 broken left out")
    assert torch.equal(found.labels, intact.labels)
    for i in range(8):
        assert torch.equal(found.images[i], intact.images[i])


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_a_png_that_is_damaged_inside_is_skipped(split_folders, reading):
    raw = bytearray(encode_image(smooth_image(0), "PNG"))
    raw[300:340] = bytes(40)
    (split_folders / "train" / "dog" / "bad.png").write_bytes(raw)
    found = load(split_folders, skip_broken=True, **reading)
    assert found.describe().endswith("; 1 broken left out")
    assert len(found) == 8


def test_a_class_of_broken_images_only(split_folders):
    for path in (split_folders / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"each class needs an image that can be read; none is left in tra"
    ):
        load(split_folders, skip_broken=True)


def test_bytes_after_the_end_marker_are_ignored(split_folders):
    """A camera may write more behind an image."""
    (split_folders / "train" / "cat" / "more.jpg").write_bytes(GOOD + b"\0" * 100 + b"camera")
    assert len(load(split_folders, **STREAM)) == len(load(split_folders)) == 9


def test_an_image_that_breaks_later_is_named(split_folders):
    data = load(split_folders, **STREAM)
    (split_folders / "train" / "cat" / "002.jpg").write_bytes(GOOD[: HEAD + 20])
    with pytest.raises(DataError, match=r"cat/002.jpg cannot be decoded \(.*truncated"):
        data[2]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_have_no_traceback(split_folders, workers):
    data = load(split_folders, **STREAM)
    path = split_folders / "train" / "cat" / "002.jpg"
    path.write_bytes(GOOD[: HEAD + 20])
    with pytest.raises(DataError) as caught:
        list(DatasetLoader(data, 2, train=False, workers=workers).epoch(0))
    assert str(caught.value).startswith(f"{path} cannot be decoded (")
    assert "Traceback" not in str(caught.value)


# Streamed images


@pytest.fixture
def many(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        write_jpegs(tmp_path / name, 15, sizes=[(40, 60), (60, 40), (33, 33)], first=100 * label)
    return tmp_path


def test_images_over_the_budget_are_streamed(many):
    need = 24 * 32 * 32 * 3
    assert isinstance(load(many, budget=need).images, torch.Tensor)
    data = load(many, budget=need - 1)
    assert isinstance(data.images, StreamedImages)
    assert "24 images of 2 classes, 32x32, read from disk batch by batch;" in data.describe()


@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_images_equal_those_in_memory(many, channels):
    kept, streamed = (load(many, channels=channels, **r) for r in ({}, STREAM))
    assert streamed.images.shape == kept.images.shape
    assert streamed.images.shape[3] == channels
    loaders = MemoryLoader(kept, 7, train=False), DatasetLoader(streamed, 7, train=False)
    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.index, other.index)
        assert other.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_seed_epoch_and_position_decide_the_augmentation(many):
    data = load(many, **STREAM)

    def images(epoch, **options):
        loader = DatasetLoader(data, 8, train=True, augment=True, **{"seed": 3} | options)
        batches = list(loader.epoch(epoch))
        order = torch.cat([b.index for b in batches]).argsort()
        return torch.cat([b.images for b in batches])[order]

    before = torch.get_rng_state()
    first = images(1)
    torch.rand(9)
    assert torch.equal(images(1), first)
    assert torch.equal(images(1, workers=1), first)
    assert not torch.equal(images(2), first)
    assert not torch.equal(images(1, seed=4), first)
    for position, found in enumerate(first):
        state = np.random.SeedSequence((3, 1, position)).generate_state(1, np.uint64)
        crop = data.images.read_random_crop(position, int(state[0] >> np.uint64(1)))
        assert torch.equal(found, crop.permute(2, 0, 1).float() / 255)
    torch.set_rng_state(before)
    images(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_matches_torchvision(many, flip):
    data = load(many, **STREAM)
    crop = v2.RandomResizedCrop(32)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop
    for position in range(6):
        with Image.open(data.images.stored.image_name(position)) as image:
            torch.manual_seed(position)
            expected = np.asarray(transform(image.convert("RGB")))
        found = data.images.read_random_crop(position, position, flip)
        assert (found.numpy() == expected).all()


def test_dataset_loader_augments_only_streamed_images(many):
    for data in (load(many), [(torch.zeros(3, 4, 4), 0)]):
        with pytest.raises(DataError, match="Use MemoryLoader for an ImageSet in memory"):
            DatasetLoader(data, 1, train=True, augment=True)


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_subsets(many, reading):
    data = load(many, **reading)
    some = data.subset(torch.tensor([20, 3])).subset(torch.tensor([1, 0]))
    assert some.labels.tolist() == [0, 1]
    for found, position in zip((some.images[0], some.images[1]), (3, 20), strict=True):
        assert torch.equal(found, data.images[position])


@pytest.mark.parametrize(("side", "padding"), [(32, 4), (64, 8), (96, 12)])
def test_padding_grows_with_the_image(tmp_path, side, padding):
    for name in ("a", "b"):
        write_jpegs(tmp_path / name, 40, sizes=[(side, side)])
    data = load(tmp_path, image_size=side)
    bright = type(data)(
        torch.full_like(data.images, 255), data.labels, data.classes, data.mean, data.std
    )
    black = []
    for batch in MemoryLoader(bright, 64, train=True, augment=True).epoch(1):
        black += [int((image[0].amax(1) == 0).sum()) for image in batch.images]
    assert max(black) == padding
