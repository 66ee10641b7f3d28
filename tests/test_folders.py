"""Folders of images of any kind and size: found, checked, kept in memory or streamed."""

import io
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from typer.testing import CliRunner

import cktf
from cktf.cli.main import app
from cktf.data import (
    DatasetLoader,
    MemoryLoader,
    ReadOptions,
    StreamedImages,
    compute_split_statistics,
    load_dataset,
    load_splits,
    open_dataset,
    split_validation,
)
from cktf.data.image_decoding import convert_to_8bit, decode_image, resize_and_center_crop
from cktf.data.image_folder import choose_image_size
from cktf.data.stored_images import ImageFiles
from cktf.errors import DataError
from cktf.models import create, save_network
from cktf.recipes import (
    DataSection,
    build_data,
    load_split,
    parse_recipe,
    parse_transfer_recipe,
    to_yaml,
)
from cktf.workflows import evaluation, plan
from cktf.workflows.analysis import RunAnalyzer
from cktf.workflows.user_objects import UserObjects

RNG = np.random.default_rng


def picture(seed, width=40, height=40):
    """A smooth image, which JPEG keeps nearly as it is."""
    small = RNG(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(folder, count, *, sizes=((40, 40),), first=0, ending=".jpg"):
    """`count` JPEGs in a folder, of one size after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        size = sizes[i % len(sizes)]
        (folder / f"{first + i:03}{ending}").write_bytes(encoded(picture(first + i, *size)))
    return folder


@pytest.fixture
def plain(tmp_path):
    """DIR/CLASS alone."""
    root = tmp_path / "photos"
    for label, (name, count) in enumerate({"cat": 10, "dog": 15, "ant": 5}.items()):
        write(root / name, count, first=100 * label)
    return root


@pytest.fixture
def split(tmp_path):
    """DIR/train/CLASS and DIR/val/CLASS."""
    root = tmp_path / "photos"
    for part, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            write(root / part / name, count, first=100 * label + (50 if part == "val" else 0))
    return root


def load(root, part="train", **reading):
    return load_dataset(f"imagefolder:{root}", None, part, ReadOptions(**reading))


STREAM = {"budget": 0}


# Which images, of which class


def test_train_and_val(split):
    train, test = load_splits(f"imagefolder:{split}", None, ("train", "test"))
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [0] * 2 + [1] * 2
    assert train.classes == test.classes == ("cat", "dog")
    assert train.describe() == (
        "8 images of 2 classes, 32x32, in memory (0.0 MB); tested on val; shorter sides have a "
        "median of 40: image_size 32"
    )
    expected = Image.open(split / "train" / "cat" / "003.jpg").resize((32, 32), Image.BILINEAR)
    assert (train.images[3].numpy() == np.asarray(expected)).all()


def test_test_comes_before_val(split):
    shutil.copytree(split / "val", split / "test")
    write(split / "test" / "cat", 3, first=70)
    assert len(load(split, "test")) == 7
    assert "tested on test;" in load(split).describe()


@pytest.mark.parametrize("below", ["", "train"])
def test_a_fifth_of_each_class_is_held_out(plain, tmp_path, below):
    if below:
        shutil.copytree(plain, tmp_path / "other" / "train")
    root = tmp_path / "other" if below else plain
    train, test = (open_dataset(f"imagefolder:{root}", None, part) for part in ("train", "test"))
    assert train.classes == ("ant", "cat", "dog")
    assert train.labels.bincount().tolist() == [4, 8, 12]
    assert test.labels.bincount().tolist() == [1, 2, 3]
    names = [{s.stored.image_name(i) for i in range(len(s.stored))} for s in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 30
    for source in (train, test):
        for i, label in enumerate(source.labels):
            assert f"/{source.classes[label]}/" in source.stored.image_name(i)
    again = open_dataset(f"imagefolder:{root}", None, "test")
    assert [again.stored.image_name(i) for i in range(6)] == [
        test.stored.image_name(i) for i in range(6)
    ]


def test_the_folder_may_also_be_the_directory(plain):
    assert len(load_dataset("imagefolder", plain, "train")) == 24
    with pytest.raises(DataError, match="imagefolder:DIR, or --data-dir DIR"):
        load_dataset("imagefolder", None, "train")


def test_names_of_any_case_and_format_in_folders_below(tmp_path):
    for name in ("a", "b"):
        folder = write(tmp_path / name / "deeper", 2, ending=".JPEG")
        write(tmp_path / name, 1, first=5, ending=".JpG")
        for kind in ("PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
            (folder / f"x.{kind}").write_bytes(encoded(picture(9), kind))
        for other in ("notes.txt", ".hidden.jpg", "Thumbs.db", "photo.jpg.part", "none"):
            (folder / other).write_bytes(b"no image")
        (tmp_path / name / ".cache").mkdir()
        (tmp_path / name / ".cache" / "x.jpg").write_bytes(b"no image")
    (tmp_path / ".git").mkdir()
    source = open_dataset(f"imagefolder:{tmp_path}", None, "train")
    assert source.classes == ("a", "b")
    assert len(source.stored) + len(load(tmp_path, "test")) == 2 * 9


def test_folders_that_are_links_are_followed_once(tmp_path):
    """As torchvision follows them; one that leads back ends there."""
    write(tmp_path / "elsewhere", 3)
    for name in ("a", "b"):
        folder = write(tmp_path / "root" / name, 2, first=5)
        (folder / "more").symlink_to(tmp_path / "elsewhere")
        (folder / "again").symlink_to(folder)
    assert len(load(tmp_path / "root")) + len(load(tmp_path / "root", "test")) == 2 * 5


def test_what_is_no_image_is_counted(plain):
    for label in ("ant", "cat"):
        for name in ("a.heic", "b.HEIC", "README", ".hidden"):
            (plain / label / name).write_bytes(b"no image")
    note = load(plain).note
    assert "a fifth of each class held out for the test; no images: 4 .heic, 2 without an" in note


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "train"):
        write(tmp_path / name, 3)
    assert load(tmp_path).classes == ("car", "train")


def test_images_without_labels_are_no_class(plain):
    write(plain / "unlabeled", 4, first=500)
    assert load(plain).classes == ("ant", "cat", "dog")
    assert len(load(plain, "unlabeled")) == 4
    for path in (plain / "unlabeled").iterdir():
        path.unlink()
    assert len(load(plain)) == 24
    with pytest.raises(DataError, match=r"photos/unlabeled, if it is there, and no images are"):
        load(plain, "unlabeled")


# What is wrong with a folder


def remove(root, *names):
    for name in names:
        shutil.rmtree(root / name)


def loose(root, *names):
    """Folders with images, not sorted."""
    remove(root, "train", "val")
    for name in names:
        write(root / name, 2)


BAD_FOLDERS = {
    "no folder": (remove, [""], "there is no such folder. Give one with a folder for each class"),
    "images alone": (loose, [""], "two or more; in .* there is none and 2 images beside. Sort"),
    "one class": (loose, ["cat"], "two or more; in .*photos there is only cat"),
    "no classes": (remove, ["train", "val"], "two or more; in .*photos there is none. Sort"),
    "train without classes": (loose, ["train"], "in train, in a folder for each.*found train,"),
    "both without classes": (loose, ["train", "test"], "found test, train, and in train no fold"),
    "class not in train": (remove, ["train/dog"], "two or more; in .*train there is only cat"),
    "class not in val": (remove, ["val/dog"], "two or more; in .*val there is only cat"),
}


@pytest.mark.parametrize(("change", "names", "words"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_what_is_wrong_with_a_folder_is_said(split, change, names, words, part):
    change(split, *names)
    with pytest.raises(DataError, match=f"imagefolder:.*photos: .*{words}"):
        load(split, part)


def test_classes_of_train_and_test_are_the_same(split):
    for name in ("bee", "cow"):
        write(split / "train" / name, 2)
    write(split / "val" / "ant", 2)
    words = (
        r"same classes, 4 and 3 were found: val has ant, which train has not; val lacks bee, cow"
    )
    with pytest.raises(DataError, match=words):
        load(split)
    shutil.rmtree(split / "val" / "ant")
    with pytest.raises(DataError, match=r"same classes, 4 and 2 were found: val lacks bee, cow. R"):
        load(split)


def test_a_test_folder_without_classes(split):
    shutil.rmtree(split / "val")
    write(split / "test", 3)
    with pytest.raises(DataError, match=r"photos/test has no folders. Sort them, or move it away"):
        load(split)


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_test_split_beside_classes(plain, name):
    write(plain / name / "cat", 2)
    words = f"test images are in {name} only where .* found ant, cat, dog.* Move the folders of cla"
    with pytest.raises(DataError, match=words):
        load(plain)


def test_classes_without_images_are_named(plain):
    for name in ("empty", "text"):
        (plain / name).mkdir()
    (plain / "text" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match=r"at least one image; none in .*empty, .*text. Add images"):
        load(plain)


def test_no_images_at_all(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.xyz").write_bytes(b"")
    with pytest.raises(DataError, match=r"no images in .*a, .*b. Their names end like .*\.jpeg"):
        load(tmp_path)


def test_a_single_image_cannot_be_held_out(plain):
    write(plain / "bee", 1)
    with pytest.raises(DataError, match=r"two images or more; one in bee. Add images, or a test"):
        load(plain)


# Broken images

GOOD = encoded(picture(0))
HEAD = GOOD.index(b"\xff\xda")  # where the pixels begin
BROKEN = {
    "truncated": (GOOD[: HEAD + 40], "image file is truncated"),
    "only a head": (GOOD[:HEAD], "cannot load this image|truncated|broken"),
    "corrupt": (b"\0" * 20 + GOOD[20:], "not an image"),
    "text": (b"<html>404</html>", "not an image"),
    "empty": (b"", "not an image"),
    "truncated PNG": (encoded(picture(0), "PNG")[:-60], "truncated|broken"),
    "truncated GIF": (encoded(picture(0), "GIF")[:-200], "truncated|broken"),
    "floats": (encoded(Image.new("F", (9, 9)), "TIFF"), "32-bit floats"),
}


@pytest.mark.parametrize(("raw", "why"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_a_broken_image_is_named_with_its_reason(split, raw, why, reading):
    (split / "train" / "dog" / "bad.jpg").write_bytes(raw)
    words = rf"1 of 9 are not: \S*train/dog/bad.jpg \(.*({why}).*\)\. Mend.*data.skip_broken=true"
    with pytest.raises(DataError, match=words):
        load(split, **reading)


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_all_broken_images_are_counted_and_ten_are_named(split, reading):
    for i in range(9):
        (split / "train" / "cat" / f"bad{i}.jpg").write_bytes(GOOD[:300])
    for i in range(4):
        (split / "val" / "dog" / f"bad{i}.jpg").write_bytes(GOOD[:300])
    with pytest.raises(DataError) as caught:
        load_splits(f"imagefolder:{split}", None, ("train", "test"), ReadOptions(**reading))
    message = str(caught.value)
    assert "13 of 25 are not" in message
    assert message.count("/bad") == 10
    assert "and 3 more" in message


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_broken_images_are_skipped_on_request_and_counted(split, reading):
    whole = load(split, **reading)
    for name in ("cat/000a.jpg", "dog/zzz.jpg"):
        (split / "train" / name).write_bytes(GOOD[:300])
    found = load(split, skip_broken=True, **reading)
    assert found.describe().endswith("; 2 broken left out")
    assert torch.equal(found.labels, whole.labels)
    for i in range(8):
        assert torch.equal(found.images[i], whole.images[i])


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_a_png_that_is_damaged_inside_is_skipped(split, reading):
    raw = bytearray(encoded(picture(0), "PNG"))
    raw[300:340] = bytes(40)
    (split / "train" / "dog" / "bad.png").write_bytes(raw)
    found = load(split, skip_broken=True, **reading)
    assert found.describe().endswith("; 1 broken left out")
    assert len(found) == 8


def test_an_image_more_moves_one_other_at_most(plain):
    """A teacher of before has seen all others on the side that they are on."""

    def held():
        source = open_dataset(f"imagefolder:{plain}", None, "test")
        return {source.stored.image_name(i) for i in range(len(source.stored))}

    before = held()
    for number in range(300, 306):
        write(plain / "dog", 1, first=number)
        now = held()
        added = {name for name in now if f"/{number}." in name}
        assert len(before - now) <= 1
        assert len(now - before - added) <= 1
        before = now


def test_skipping_does_not_change_what_is_held_out(plain):
    def names(**reading):
        source = open_dataset(f"imagefolder:{plain}", None, "test", ReadOptions(**reading))
        return [source.stored.image_name(i) for i in range(len(source.stored))]

    before = names()
    bad = plain / "dog" / "205.jpg"
    bad = bad if bad.exists() else next((plain / "dog").iterdir())
    bad.write_bytes(b"")
    assert names(skip_broken=True) == before


def test_a_class_of_broken_images_only(split):
    for path in (split / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"at least one image that can be read; none is left in tra"
    ):
        load(split, skip_broken=True)


def test_what_decodes_to_the_end_is_whole(split):
    """A camera may write more behind an image."""
    (split / "train" / "cat" / "more.jpg").write_bytes(GOOD + b"\0" * 100 + b"camera")
    assert len(load(split, **STREAM)) == len(load(split)) == 9


def test_an_image_that_breaks_later_is_named(split):
    data = load(split, **STREAM)
    (split / "train" / "cat" / "002.jpg").write_bytes(GOOD[: HEAD + 20])
    with pytest.raises(DataError, match=r"cat/002.jpg cannot be decoded \(.*truncated"):
        data[2]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_s_error_is_its_message(split, workers):
    data = load(split, **STREAM)
    path = split / "train" / "cat" / "002.jpg"
    path.write_bytes(GOOD[: HEAD + 20])
    with pytest.raises(DataError) as caught:
        list(DatasetLoader(data, 2, train=False, workers=workers).epoch(0))
    assert str(caught.value).startswith(f"{path} cannot be decoded (")
    assert "Traceback" not in str(caught.value)


# From any kind of picture to RGB

RAMP = np.linspace(0, 255, 20).round().astype(np.uint8).reshape(4, 5)
SIXTEEN = RAMP.astype(np.uint16) * 257
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T.reshape(4, 5)], axis=2)


def gray(array):
    return np.stack([array] * 3, axis=2)


def with_alpha(color, alpha):
    return Image.fromarray(np.concatenate([color, alpha[..., None]], axis=2))


def on_white(color, alpha):
    """The definition, of 8-bit values."""
    share = alpha[..., None] / 255
    return color * share + 255 * (1 - share)


def palette():
    image = Image.fromarray((RAMP > 100).astype(np.uint8), "L")
    image.putpalette([250, 10, 20, 0, 60, 240] + [0] * 762)
    return image


PALETTE = np.where((RAMP > 100)[..., None], [0, 60, 240], [250, 10, 20])
KINDS = {
    "RGB": (encoded(Image.fromarray(COLOUR), "PNG"), COLOUR),
    "gray": (encoded(Image.fromarray(RAMP), "PNG"), gray(RAMP)),
    "black and white": (
        encoded(Image.fromarray(RAMP > 100), "PNG"), gray(np.where(RAMP > 100, 255, 0)),
    ),
    "RGBA": (encoded(with_alpha(COLOUR, RAMP), "PNG"), on_white(COLOUR, RAMP)),
    "gray with alpha": (
        encoded(Image.fromarray(np.stack([RAMP[::-1], RAMP], axis=2)), "PNG"),
        on_white(gray(RAMP[::-1]), RAMP),
    ),
    "palette": (encoded(palette(), "PNG"), PALETTE),
    "palette with a transparent color": (
        encoded(palette(), "PNG", transparency=0),
        np.where((RAMP > 100)[..., None], [0, 60, 240], 255),
    ),
    "16 bits": (encoded(Image.fromarray(SIXTEEN), "PNG"), gray(RAMP)),
    "16 bits in TIFF": (encoded(Image.fromarray(SIXTEEN), "TIFF"), gray(RAMP)),
    "32 bits that hold 16": (
        encoded(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), gray(RAMP),
    ),
    "CMYK": (
        encoded(Image.merge("CMYK", [*map(Image.fromarray, np.moveaxis(255 - COLOUR, 2, 0).copy()),
                                     Image.new("L", (5, 4), 0)]), "TIFF"), COLOUR,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), KINDS.values(), ids=KINDS)
def test_every_kind_becomes_rgb(raw, expected):
    found = decode_image(Image.open(io.BytesIO(raw)))
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found) - expected).max() <= 1


@pytest.mark.parametrize("raw", [raw for raw, _ in KINDS.values()], ids=KINDS)
def test_and_grey_on_request(raw):
    found = decode_image(Image.open(io.BytesIO(raw)), channels=1)
    colors = np.asarray(decode_image(Image.open(io.BytesIO(raw)))) @ np.array([0.299, 0.587, 0.114])
    assert found.mode == "L"
    assert np.abs(np.asarray(found) - colors).max() <= 1


def test_cmyk_of_a_jpeg_keeps_its_colors(tmp_path):
    color = picture(3)
    raw = encoded(color.convert("CMYK"), "JPEG", quality=95)
    found = np.asarray(decode_image(Image.open(io.BytesIO(raw)))).astype(int)
    assert np.abs(found - np.asarray(color)).max() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_may_be_held_any_way(orientation):
    upright = Image.fromarray(RNG(1).integers(0, 256, (6, 9, 3), dtype=np.uint8))
    turns = Image.Transpose
    undone = {
        1: None, 2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE, 6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undone is None else upright.transpose(undone)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_image(Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif.tobytes()))))
    assert (np.asarray(found) == np.asarray(upright)).all()


def test_a_camera_s_note_may_be_damaged():
    """Orientation 6, and a resolution that is text: Pillow cannot write that note anew."""
    entries = [(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (0x011A, 2, 4, b"abc\0")]
    note = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    note += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4)
    stored = Image.fromarray(RNG(1).integers(0, 256, (4, 8, 3), dtype=np.uint8))
    raw = encoded(stored, exif=note)
    found = decode_image(Image.open(io.BytesIO(raw)))
    expected = Image.open(io.BytesIO(raw)).transpose(Image.Transpose.ROTATE_270)
    assert (np.asarray(found) == np.asarray(expected)).all()


def test_integers_of_unknown_range_are_refused():
    with pytest.raises(ValueError, match="32-bit integers, of which the range is not known"):
        convert_to_8bit(Image.fromarray(np.array([[70_000]], dtype=np.int32)))


# Sizes


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(40, 500)], 32), ([(60, 70), (70, 61), (90, 64)], 64), ([(8, 8)], 32),
        ([(500, 375), (375, 500), (300, 900)], 224), ([(100, 110)], 96),
    ],
)  # fmt: skip
def test_the_median_of_the_shorter_sides_decides_the_size(tmp_path, sizes, expected):
    for name in ("a", "b"):
        write(tmp_path / "train" / name, 3, sizes=sizes)
        write(tmp_path / "val" / name, 1, sizes=[(20, 20)])
    for part in ("train", "test"):
        data = load(tmp_path, part)
        assert data.images.shape[1:] == (expected, expected, 3)
    assert f"image_size {expected}" in load(tmp_path).describe()
    assert load(tmp_path, image_size=50).images.shape[1:] == (50, 50, 3)


def test_the_size_is_that_of_what_can_be_read(tmp_path):
    write(tmp_path, 3, sizes=[(64, 90)])
    (tmp_path / "0.jpg").write_bytes(b"")
    assert choose_image_size(ImageFiles(sorted(tmp_path.iterdir())))[0] == 64


@pytest.mark.parametrize(("width", "height"), [(37, 90), (90, 37), (48, 48), (300, 20), (32, 32)])
def test_the_centre_is_scaled_as_by_torchvision(width, height):
    image = picture(5, width, height)
    expected = v2.Compose([v2.Resize(32), v2.CenterCrop(32)])(image)
    found = resize_and_center_crop(image, 32)
    assert found.size == (32, 32)
    apart = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    # Half a pixel, where torchvision rounds the other side.
    assert apart.max() <= 12
    assert apart.mean() < 2


def test_a_large_jpeg_is_decoded_reduced_but_not_too_far():
    image = Image.open(io.BytesIO(encoded(picture(2, 640, 480))))
    assert min(decode_image(image, min_side=64).size) == 120
    image = Image.open(io.BytesIO(encoded(picture(2, 640, 480), "PNG")))
    assert decode_image(image, min_side=64).size == (640, 480)


# Streamed


@pytest.fixture
def many(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        write(tmp_path / name, 15, sizes=[(40, 60), (60, 40), (33, 33)], first=100 * label)
    return tmp_path


def test_what_is_over_the_budget_is_streamed(many):
    need = 24 * 32 * 32 * 3
    assert isinstance(load(many, budget=need).images, torch.Tensor)
    data = load(many, budget=need - 1)
    assert isinstance(data.images, StreamedImages)
    assert "24 images of 2 classes, 32x32, read from disk batch by batch;" in data.describe()


@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_images_are_those_of_memory(many, channels):
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
def test_augmentation_is_decided_by_seed_epoch_and_image_alone(many):
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
    torch.set_rng_state(before)
    images(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("flip", [True, False])
def test_augmented_images_are_torchvisions(many, flip):
    data = load(many, **STREAM)
    crop = v2.RandomResizedCrop(32)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop
    for position in range(6):
        with Image.open(data.images.stored.image_name(position)) as image:
            torch.manual_seed(position)
            expected = np.asarray(transform(image.convert("RGB")))
        found = data.images.read_augmented(position, position, flip)
        assert (found.numpy() == expected).all()


def test_only_streams_are_augmented_by_the_data_sets_loader(many):
    for data in (load(many), [(torch.zeros(3, 4, 4), 0)]):
        with pytest.raises(DataError, match="Use MemoryLoader for an ImageSet in memory"):
            DatasetLoader(data, 1, train=True, augment=True)


@pytest.mark.parametrize("reading", [{}, STREAM], ids=["memory", "stream"])
def test_some_of_the_images(many, reading):
    data = load(many, **reading)
    some = data.subset(torch.tensor([20, 3])).subset(torch.tensor([1, 0]))
    assert some.labels.tolist() == [0, 1]
    for found, position in zip((some.images[0], some.images[1]), (3, 20), strict=True):
        assert torch.equal(found, data.images[position])


@pytest.mark.parametrize(("side", "padding"), [(32, 4), (64, 8), (96, 12)])
def test_larger_images_are_moved_further(tmp_path, side, padding):
    for name in ("a", "b"):
        write(tmp_path / name, 40, sizes=[(side, side)])
    data = load(tmp_path, image_size=side)
    bright = type(data)(
        torch.full_like(data.images, 255), data.labels, data.classes, data.mean, data.std
    )
    black = []
    for batch in MemoryLoader(bright, 64, train=True, augment=True).epoch(1):
        black += [int((image[0].amax(1) == 0).sum()) for image in batch.images]
    assert max(black) == padding


# Held out for validation


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("counts", [(10, 10, 10), (100, 7, 2), (3, 50)])
def test_every_class_gives_the_same_fraction(fraction, counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    train, held = split_validation(labels, fraction, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    for label, count in enumerate(counts):
        given = int((labels[held] == label).sum())
        assert abs(given - fraction * count) <= 0.5 or given in (1, count - 1)
        assert 1 <= given <= count - 1


def test_the_seed_decides_who_is_held_out():
    labels = torch.arange(200) % 4
    one, again, other = (split_validation(labels, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert len(one) == len(other) == 40


def test_nothing_is_held_out_of_nothing():
    train, held = split_validation(torch.tensor([2, 0, 1]), 0.0, seed=0)
    assert (train.tolist(), held.tolist()) == ([0, 1, 2], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_impossible_fractions(fraction):
    with pytest.raises(DataError, match="from 0 to below 1, given"):
        split_validation(torch.tensor([0, 0]), fraction, seed=0)


def test_a_class_of_one_cannot_be_split():
    with pytest.raises(DataError, match="class 1 has a single image"):
        split_validation(torch.tensor([0, 0, 1]), 0.3, seed=0)


# Sets that belong together


@pytest.fixture
def sets(tmp_path):
    """Folders of the same two classes, of a side and a number of test images that tell them."""
    for name, (side, count) in {"a": (64, 3), "b": (96, 4), "c": (128, 5)}.items():
        for part, images in (("train", 2), ("test", count)):
            for label in ("cat", "dog"):
                write(tmp_path / name / part / label, images, sizes=[(side, side)])
    return {name: f"imagefolder:{tmp_path / name}" for name in "abc"}


def finished(folder, recipe):
    """What evaluation reads of a run: its recipe, and a network of its classes."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    save_network(
        create("resnet8", 2), folder / "student.safetensors", name="resnet8",
        classes=["cat", "dog"], dataset="photos",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("kind", ["train", "transfer"])
def test_the_set_that_is_named_is_measured(sets, tmp_path, monkeypatch, kind):
    section = {"name": sets["a"], "test": sets["b"], "classes": ["cat", "dog"]}
    if kind == "train":
        recipe = parse_recipe({"kind": kind, "model": "resnet8", "data": section})
    else:
        fields = {"teacher": "resnet8", "student": "resnet8", "data": {"name": sets["a"]}}
        recipe = parse_transfer_recipe({"kind": kind, "labeled": section, **fields})
    monkeypatch.chdir(tmp_path)
    # A run folder may be called like a network.
    run = finished(Path("resnet8"), recipe)
    for data, (measured, images) in {
        None: ("b", 8), sets["a"]: ("a", 6), sets["b"]: ("b", 8), sets["c"]: ("c", 10),
    }.items():  # fmt: skip
        accuracy, name = cktf.evaluate(run, data)
        assert (name, accuracy.samples) == (sets[measured], images)


def test_a_folder_named_from_where_one_is_is_the_same_folder(sets, tmp_path, monkeypatch):
    section = {"name": sets["a"], "test": sets["b"], "dir": "images"}
    recipe = parse_recipe({"kind": "train", "model": "resnet8", "data": section})
    run = finished(tmp_path / "run", recipe)
    monkeypatch.chdir(tmp_path)
    assert evaluation.load_test_section(run, "imagefolder:b")[1] == recipe.data
    assert evaluation.load_test_section(run, "imagefolder:a")[1].dir == "images"
    assert evaluation.load_test_section(run, "imagefolder:c")[1].name == sets["c"]


def test_a_run_is_evaluated_at_the_size_of_its_training(sets, tmp_path, monkeypatch):
    out = tmp_path / "run"
    line = f"train --model resnet8 --data {sets['a']} --epochs 1 --out {out}"
    assert CliRunner().invoke(app, [*line.split(), "--set", "data.batch_size=4"]).exit_code == 0
    seen = []

    def accuracy_of(forward, loader, *others):
        seen.append(tuple(next(iter(loader.epoch(0))).images.shape))
        return accuracy(forward, loader, *others)

    accuracy = evaluation.accuracy_of
    monkeypatch.setattr(evaluation, "accuracy_of", accuracy_of)
    for data in (None, sets["a"], sets["c"]):
        cktf.evaluate(out, data)
    assert seen == [(6, 3, 64, 64), (6, 3, 64, 64), (10, 3, 64, 64)]


@pytest.mark.parametrize("tested", ["a", "b"])
def test_a_folder_may_have_moved(sets, tmp_path, tested):
    """It is where --data-dir says, and images that came later change no size."""
    out, moved = tmp_path / "run", tmp_path / "elsewhere"
    line = f"train --model resnet8 --data {sets['a']} --epochs 1 --out {out}"
    options = ["--set", "data.batch_size=4", "--set", f"data.test={sets[tested]}"]
    assert CliRunner().invoke(app, [*line.split(), *options]).exit_code == 0
    log = (out / "log.txt").read_text()
    assert f"{sets['a']}: train: 4 images of 2 classes, 64x64, in memory" in log
    expected = cktf.evaluate(out)[0]
    (tmp_path / tested).rename(moved)
    for label in ("cat", "dog"):
        write(moved / "train" / label, 9, first=20, sizes=[(256, 256)])
    accuracy, name = cktf.evaluate(out, data_dir=str(moved))
    assert (accuracy, name) == (expected, f"imagefolder:{moved}")
    with pytest.raises(DataError, match="there is no such folder"):
        cktf.evaluate(out)
    trained_on, there = (
        evaluation.load_test_section(out, sets["a"], str(moved))[1],
        f"imagefolder:{moved}",
    )
    assert (trained_on.name, trained_on.test) == (there, None)
    found = RunAnalyzer(data_dir=str(moved)).analyze(out)
    assert (found.missing, tuple(found.images.shape[1:])) == ("", (64, 64, 3))


def test_a_folder_of_test_images_alone(sets, tmp_path):
    recipe = parse_recipe({"kind": "train", "model": "resnet8", "data": {"name": sets["a"]}})
    run = finished(tmp_path / "run", recipe)
    (tmp_path / "b" / "train").rename(tmp_path / "aside")
    assert cktf.evaluate(run, sets["b"])[0].samples == 8
    words = "training images are in train.*found test.*or give the folder"
    with pytest.raises(DataError, match=words):
        load_dataset(sets["b"], None, "train")


def test_another_set_is_tested_at_the_size_of_training(sets):
    section = DataSection(name=sets["a"], test=sets["c"], batch_size=2)
    data = build_data(section, 0)
    assert data.raw_train.images.shape[1:] == data.raw_test.images.shape[1:] == (64, 64, 3)
    assert load_split(section, "test").images.shape == (10, 64, 64, 3)


@pytest.mark.parametrize(
    ("found", "meant"),
    [("Train", "train"), ("TESTING", "test"), ("Validation", "validation"),
     ("unlabeled", "unlabeled")],
)  # fmt: skip
def test_a_split_by_another_name_is_no_class(plain, found, meant):
    """It would be learned as one, or left out of the test."""
    folder = plain / found
    (plain / "ant").rename(folder if meant == "unlabeled" else plain / "kept")
    if meant != "unlabeled":
        folder.mkdir()
        (plain / "kept").rename(folder / "ant")
    with pytest.raises(DataError, match=f"found {found}. Rename it to {meant},"):
        load(plain)


def test_a_class_may_be_called_as_a_split(plain):
    (plain / "ant").rename(plain / "Train")
    assert load(plain).classes == ("Train", "cat", "dog")


def test_images_without_labels_have_the_size_of_the_others(plain):
    write(plain / "unlabeled", 4, sizes=[(128, 128)], first=500)
    found = load(plain, "unlabeled")
    assert found.images.shape[1] == load(plain).images.shape[1] == 32
    assert found.note == "image_size 32, as of its images with labels"
    for name in ("ant", "cat", "dog"):
        shutil.rmtree(plain / name)
    assert load(plain, "unlabeled").images.shape[1] == 128


@pytest.mark.parametrize(("given", "size"), [({}, 64), ({"image_size": 32}, 32)])
def test_a_transfer_probes_at_the_size_it_distils_at(sets, tmp_path, given, size):
    fields = {
        "teacher": "custom", "student": "custom", "labeled": {"name": sets["c"]} | given,
        "data": {"name": sets["a"], "batch_size": 2},
    }  # fmt: skip
    recipe, out = parse_transfer_recipe({"kind": "transfer", **fields}), tmp_path / "run"
    networks = UserObjects(create("resnet8", 2), create("resnet8", 2))
    planned = plan(recipe, out, networks)
    assert planned.labeled.raw_train.images.shape[1] == size
    assert planned.parts.data.raw_train.images.shape[1] == 64
    # What is evaluated or reported of it later, and what goes on, is of that size too.
    assert planned.recipe.labeled.image_size == size
    finished(out, planned.recipe)
    assert plan(recipe, out, networks, resume=True).recipe == planned.recipe


# What a user is told


def look(*arguments):
    result = CliRunner().invoke(app, ["datasets", *map(str, arguments)], env={"COLUMNS": "200"})
    cells = [re.split(r"\s{2,}", line.strip()) for line in result.output.splitlines()]
    return result, {row[0]: row for row in cells if row[0]}


def test_cktf_datasets_shows_what_is_in_one(tmp_path):
    write(tmp_path / "train" / "cat", 6, sizes=[(40, 60), (50, 90)])
    write(tmp_path / "train" / "dog", 3, sizes=[(80, 70)])
    for name in ("cat", "dog"):
        write(tmp_path / "val" / name, 2)
    for i in range(12):
        (tmp_path / "train" / "dog" / f"bad{i:02}.jpg").write_bytes(GOOD[:300])
    result, rows = look(f"imagefolder:{tmp_path}")
    assert result.exit_code == 0, result.output
    assert rows["train"] == [
        "train", "21", "2", "6 to 15", "2.50", "40x60 to 80x70, shorter sides 50", "64x64", "12",
    ]  # fmt: skip
    assert rows["test"] == ["test", "4", "2", "2", "1.00", "40x40", "64x64", "0"]
    assert "tested on val; shorter sides have a median of 50: image_size 64" in result.output
    assert result.output.count("broken: /") == 10
    assert "broken: 2 more in train" in result.output


def test_cktf_datasets_of_a_set_in_one_file():
    result, rows = look("fashion-mini")
    assert result.exit_code == 0
    assert rows["train"][1:] == ["10,000", "10", "1,000", "1.00", "32x32", "32x32", "0"]


def test_cktf_datasets_of_what_is_not_there(tmp_path):
    for name, words in (("cifar11", "Did you mean"), ("imagefolder:/nowhere", "no such folder")):
        result, _ = look(name)
        assert result.exit_code == 2
        assert words in result.output
    assert look("stl10", "--data-dir", tmp_path)[0].exit_code == 2


def test_a_survey_leaves_nothing_out(split):
    (split / "train" / "dog" / "bad.jpg").write_bytes(GOOD[: HEAD + 40])
    found = compute_split_statistics(open_dataset(f"imagefolder:{split}", None, "train"))
    assert (found.images, found.counts, found.imbalance) == (9, (4, 5), 1.25)
    assert len(found.sizes) == 8
    assert len(found.broken) == 1
