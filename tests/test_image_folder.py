"""Folders of images: which files belong to which split and class, and mistakes in a folder."""

import shutil
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from image_files import encode_image, smooth_image, write_jpegs
from PIL import Image

from cktf.data import ReadOptions, image_listing, load_dataset, load_splits, open_dataset
from cktf.data.image_folder import choose_image_size
from cktf.data.stored_images import ImageFiles
from cktf.errors import DataError
from cktf.recipes import DataConfig, build_data, load_split


def load(root, part="train", **options):
    return load_dataset(f"imagefolder:{root}", None, part, ReadOptions(**options))


def test_train_and_val(split_folders):
    train, test = load_splits(f"imagefolder:{split_folders}", None, ("train", "test"))
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [0] * 2 + [1] * 2
    assert train.classes == test.classes == ("cat", "dog")
    assert train.describe() == (
        "8 images of 2 classes, 32x32, in memory (0.0 MB); tested on val; shorter sides have a "
        "median of 40: image_size 32"
    )
    expected = Image.open(split_folders / "train" / "cat" / "003.jpg").resize(
        (32, 32), Image.BILINEAR
    )
    assert (train.images[3].numpy() == np.asarray(expected)).all()


def test_test_comes_before_val(split_folders):
    shutil.copytree(split_folders / "val", split_folders / "test")
    write_jpegs(split_folders / "test" / "cat", 3, first=70)
    assert len(load(split_folders, "test")) == 7
    assert "tested on test;" in load(split_folders).describe()


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "dev"])
def test_val_beside_test_is_the_validation_split(split_folders, val):
    """Its images decide which epoch is kept, and none of them is tested on."""
    (split_folders / "val").rename(split_folders / val)
    for label in ("cat", "dog"):
        write_jpegs(split_folders / "test" / label, 3, first=70)
    data = build_data(DataConfig(name=str(split_folders), batch_size=2), 0)
    names = [{s.image_name(i) for i in range(len(s))} for s in (
        open_dataset(f"imagefolder:{split_folders}", None, part).stored
        for part in ("train", "validation", "test")
    )]  # fmt: skip
    assert [len(n) for n in names] == [8, 4, 6]
    assert all(f"/{val}/" in name for name in names[1])
    assert data.validation is not None
    assert (data.train.samples, data.validation.samples, data.test.samples) == (8, 4, 6)
    assert f"| validation: 4 images of 2 classes, 32x32, in memory (0.0 MB); from {val} |" in (
        data.description
    )
    assert data.description.endswith("the weights of the epoch that is best on validation are kept")


def test_images_held_out_on_request_replace_val(split_folders):
    shutil.copytree(split_folders / "val", split_folders / "test")
    section = DataConfig(name=str(split_folders), batch_size=2, validation=0.25)
    data = build_data(section, 0)
    assert (data.train.samples, data.validation.samples, data.test.samples) == (6, 2, 4)
    assert "its own validation images are left out, since data.validation" in data.description


def test_val_is_the_test_split_where_there_is_no_other(split_folders, tmp_path):
    data = build_data(DataConfig(name=str(split_folders), batch_size=2), 0)
    assert (data.validation, data.test.samples) == (None, 4)
    assert "; tested on val;" in data.description
    with pytest.raises(DataError, match="a validation split is in DIR/val beside DIR/train and"):
        load(split_folders, "validation")
    # With test images from elsewhere it is free for validation.
    for label in ("cat", "dog"):
        write_jpegs(tmp_path / "other" / label, 5, first=70)
    section = DataConfig(name=str(split_folders), test=str(tmp_path / "other"), batch_size=2)
    data = build_data(section, 0)
    assert (data.train.samples, data.validation.samples, data.test.samples) == (8, 4, 10)
    assert "tested on" not in data.description


def test_val_has_the_classes_of_train(split_folders):
    shutil.copytree(split_folders / "val", split_folders / "test")
    (split_folders / "val" / "dog").rename(split_folders / "val" / "Dog")
    with pytest.raises(DataError, match=r"train and val must have the same .* only in val: Dog"):
        build_data(DataConfig(name=str(split_folders), batch_size=2), 0)


def test_folders_beside_train_are_said(split_folders):
    (split_folders / "val").rename(split_folders / "tset")
    for folder in ("raw", "test_old"):
        (split_folders / folder).mkdir()
    write_jpegs(split_folders, 2)
    note = load(split_folders).note
    assert note.startswith(
        "a fifth of each class held out for the test; left out beside train: raw, test_old (did "
        "you mean test?), tset (did you mean test?); left out: 2 images outside of class folders;"
    )


def test_folders_of_systems_are_left_out_and_counted(class_folders):
    for parent in ("", "cat", "cat/deeper"):
        for folder in ("@eaDir", ".ipynb_checkpoints", "__MACOSX", "#recycle", "lost+found"):
            write_jpegs(class_folders / parent / folder / "a.jpg", 2)
    write_jpegs(class_folders / "dog" / ".Trash-1000", 1)
    shutil.copy(class_folders / "dog" / "100.jpg", class_folders / "dog" / "._100.jpg")
    found = load(class_folders)
    assert (len(found), found.classes) == (24, ("ant", "cat", "dog"))
    counts = found.note.split("hidden or system images left out: ")[1].split(";")[0].split(", ")
    assert sorted(counts) == [
        "1 in .Trash-1000", "1 with a hidden name", "6 in #recycle", "6 in .ipynb_checkpoints",
        "6 in @eaDir", "6 in __MACOSX", "6 in lost+found",
    ]  # fmt: skip


@pytest.mark.parametrize("below", ["", "train"])
def test_a_fifth_of_each_class_is_held_out(class_folders, tmp_path, below):
    if below:
        shutil.copytree(class_folders, tmp_path / "other" / "train")
    root = tmp_path / "other" if below else class_folders
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


def test_the_folder_may_also_be_the_directory(class_folders):
    assert len(load_dataset("imagefolder", class_folders, "train")) == 24
    with pytest.raises(DataError, match="imagefolder:DIR, or --data-dir DIR"):
        load_dataset("imagefolder", None, "train")


def test_names_of_any_case_and_format_in_folders_below(tmp_path):
    for name in ("a", "b"):
        folder = write_jpegs(tmp_path / name / "deeper", 2, ending=".JPEG")
        write_jpegs(tmp_path / name, 1, first=5, ending=".JpG")
        for kind in ("PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM"):
            (folder / f"x.{kind}").write_bytes(encode_image(smooth_image(9), kind))
        for other in ("notes.txt", ".hidden.jpg", "Thumbs.db", "photo.jpg.part", "none"):
            (folder / other).write_bytes(b"no image")
        (tmp_path / name / ".cache").mkdir()
        (tmp_path / name / ".cache" / "x.jpg").write_bytes(b"no image")
    (tmp_path / ".git").mkdir()
    source = open_dataset(f"imagefolder:{tmp_path}", None, "train")
    assert source.classes == ("a", "b")
    assert len(source.stored) + len(load(tmp_path, "test")) == 2 * 9


def test_symbolic_links_are_followed_once(tmp_path):
    """As torchvision follows them; one that leads back ends there."""
    write_jpegs(tmp_path / "elsewhere", 3)
    for name in ("a", "b"):
        folder = write_jpegs(tmp_path / "root" / name, 2, first=5)
        (folder / "more").symlink_to(tmp_path / "elsewhere")
        (folder / "again").symlink_to(folder)
    assert len(load(tmp_path / "root")) + len(load(tmp_path / "root", "test")) == 2 * 5


def test_other_files_are_counted(class_folders):
    for label in ("ant", "cat"):
        for name in ("a.heic", "b.HEIC", "README", ".hidden"):
            (class_folders / label / name).write_bytes(b"no image")
    note = load(class_folders).note
    assert "a fifth of each class held out for the test; no images: 4 .heic, 2 without an" in note


@pytest.mark.parametrize("unlabeled", [False, True])
def test_photographs_of_phones_alone(class_folders, unlabeled, monkeypatch):
    monkeypatch.setattr(image_listing, "_image_extensions", lambda: frozenset({".jpg"}))
    folder = class_folders / ("unlabeled" if unlabeled else "bee")
    folder.mkdir()
    for name in ("a.heic", "b.HEIC"):
        (folder / name).write_bytes(b"")
    words = r"2 \.heic can be read after pip install .*\[heic\]'.*\. Add images"
    with pytest.raises(DataError, match=words):
        load(class_folders, "unlabeled" if unlabeled else "train")


def test_class_names_in_any_unicode_form(tmp_path):
    """macOS writes an accent as a character of its own; classes, order and test images stay."""
    names = "caf\u00e9", "cafz"
    for form in ("NFC", "NFD"):
        for name in names:
            write_jpegs(tmp_path / form / normalize(form, name), 10)
    (tmp_path / "mixed").mkdir()
    shutil.copytree(tmp_path / "NFC", tmp_path / "mixed" / "train")
    shutil.copytree(tmp_path / "NFD", tmp_path / "mixed" / "test")
    one, other = (
        open_dataset(f"imagefolder:{tmp_path / form}", None, "test") for form in ("NFC", "NFD")
    )
    assert one.classes == other.classes == ("cafz", "caf\u00e9")
    held_out = [[Path(path).name for path in source.stored.paths] for source in (one, other)]
    assert held_out[0] == held_out[1]
    assert load(tmp_path / "mixed").classes == one.classes
    section = DataConfig(name=str(tmp_path / "NFC"), classes=[normalize("NFD", names[0]), "cafz"])
    assert load_split(section, "train").classes == names
    # Folders of one name in both forms are one class.
    write_jpegs(tmp_path / "NFC" / normalize("NFD", names[0]), 5, first=50)
    assert load_split(section, "train").labels.bincount().tolist() == [12, 8]


def test_images_without_labels_are_no_class(class_folders):
    write_jpegs(class_folders / "unlabeled", 4, first=500)
    assert load(class_folders).classes == ("ant", "cat", "dog")
    assert len(load(class_folders, "unlabeled")) == 4
    for path in (class_folders / "unlabeled").iterdir():
        path.unlink()
    assert len(load(class_folders)) == 24
    with pytest.raises(DataError, match=r"no images are in .*photos/unlabeled. File names end in"):
        load(class_folders, "unlabeled")


# Mistakes


def remove(root, *names):
    for name in names:
        shutil.rmtree(root / name)


def write_without_classes(root, *names):
    remove(root, "train", "val")
    for name in names:
        write_jpegs(root / name, 2)


BAD_FOLDERS = {
    "no folder": (remove, [""], "there is no such folder. Give one with a folder for each class"),
    "images alone": (write_without_classes, [""], "no class folders and 2 images outside"),
    "one class": (write_without_classes, ["cat"], "photos has only the class folder cat. Images"),
    "no classes": (remove, ["train", "val"], "photos has no class folders. Images are in"),
    "train without classes": (
        write_without_classes,
        ["train"],
        "found train, and no class folders",
    ),
    "both without classes": (write_without_classes, ["train", "test"], "found test, train, and no"),
    "misspelled splits": (
        lambda root, *_: [
            (root / "train").rename(root / "trian"),
            (root / "val").rename(root / "tset"),
        ],
        [],
        r"found trian \(did you mean train\?\), tset \(did you mean test\?\), and no class folders",
    ),
    "one folder too high": (
        lambda root, *_: (
            [(root / "photos").mkdir()]
            + [shutil.move(root / part, root / "photos") for part in ("train", "val")]
        ),
        [],
        "has only the class folder photos.* Is it imagefolder:.*photos/photos that you mean",
    ),
    "class not in train": (remove, ["train/dog"], "train has only the class folder cat"),
    "class not in val": (remove, ["val/dog"], "val has only the class folder cat"),
}


@pytest.mark.parametrize(("change", "names", "words"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
@pytest.mark.parametrize("part", ["train", "test"])
def test_malformed_folders_are_explained(split_folders, change, names, words, part):
    change(split_folders, *names)
    with pytest.raises(DataError, match=f"imagefolder:.*photos: .*{words}"):
        load(split_folders, part)


def test_train_and_test_have_the_same_classes(split_folders):
    for name in ("bee", "cow"):
        write_jpegs(split_folders / "train" / name, 2)
    write_jpegs(split_folders / "val" / "ant", 2)
    words = "only in train: bee, cow; only in val: ant. Rename"
    with pytest.raises(DataError, match=words):
        load(split_folders)


def test_a_test_folder_without_class_folders(split_folders):
    shutil.rmtree(split_folders / "val")
    write_jpegs(split_folders / "test", 3)
    with pytest.raises(DataError, match=r"photos/test has no class folders\. .* Move it away"):
        load(split_folders)


@pytest.mark.parametrize("name", ["test", "Validation"])
def test_a_test_folder_beside_class_folders(class_folders, name):
    write_jpegs(class_folders / name / "cat", 2)
    with pytest.raises(DataError, match=f"found .*{name}.*, and no class folders in train"):
        load(class_folders)


def test_classes_without_images_are_named(class_folders):
    for name in ("empty", "text"):
        (class_folders / name).mkdir()
    (class_folders / "text" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match=r"none in .*empty, .*text\. File names end in .*\.jpeg"):
        load(class_folders)


def test_a_single_image_cannot_be_held_out(class_folders):
    write_jpegs(class_folders / "bee", 1)
    with pytest.raises(DataError, match=r"two images or more; one in bee. Add images, or a test"):
        load(class_folders)


@pytest.mark.parametrize(("train", "test"), [("Train", "VAL"), ("training", "Testing")])
def test_split_folders_in_other_spellings(split_folders, train, test):
    (split_folders / "train").rename(split_folders / train)
    (split_folders / "val").rename(split_folders / test)
    assert [len(load(split_folders, part)) for part in ("train", "test")] == [8, 4]


def test_a_class_may_be_called_like_a_split(class_folders):
    (class_folders / "ant").rename(class_folders / "Train")
    assert load(class_folders).classes == ("Train", "cat", "dog")


# Held out


def test_an_added_image_moves_at_most_one_other(class_folders):
    """So that a teacher trained before has seen none of the other test images."""

    def held():
        source = open_dataset(f"imagefolder:{class_folders}", None, "test")
        return {source.stored.image_name(i) for i in range(len(source.stored))}

    before = held()
    for number in range(300, 306):
        write_jpegs(class_folders / "dog", 1, first=number)
        now = held()
        added = {name for name in now if f"/{number}." in name}
        assert len(before - now) <= 1
        assert len(now - before - added) <= 1
        before = now


def test_skipping_does_not_change_what_is_held_out(class_folders):
    def names(**reading):
        source = open_dataset(f"imagefolder:{class_folders}", None, "test", ReadOptions(**reading))
        return [source.stored.image_name(i) for i in range(len(source.stored))]

    before = names()
    bad = class_folders / "dog" / "205.jpg"
    bad = bad if bad.exists() else next((class_folders / "dog").iterdir())
    bad.write_bytes(b"")
    assert names(skip_broken=True) == before


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
        write_jpegs(tmp_path / "train" / name, 3, sizes=sizes)
        write_jpegs(tmp_path / "val" / name, 1, sizes=[(20, 20)])
    for part in ("train", "test"):
        data = load(tmp_path, part)
        assert data.images.shape[1:] == (expected, expected, 3)
    assert f"image_size {expected}" in load(tmp_path).describe()
    assert load(tmp_path, image_size=50).images.shape[1:] == (50, 50, 3)


def test_the_size_is_that_of_what_can_be_read(tmp_path):
    write_jpegs(tmp_path, 3, sizes=[(64, 90)])
    (tmp_path / "0.jpg").write_bytes(b"")
    assert choose_image_size(ImageFiles(sorted(tmp_path.iterdir())))[0] == 64


def test_images_without_labels_have_the_size_of_the_others(class_folders):
    write_jpegs(class_folders / "unlabeled", 4, sizes=[(128, 128)], first=500)
    found = load(class_folders, "unlabeled")
    assert found.images.shape[1] == load(class_folders).images.shape[1] == 32
    assert found.note == "image_size 32, as of its images with labels"
    for name in ("ant", "cat", "dog"):
        shutil.rmtree(class_folders / name)
    assert load(class_folders, "unlabeled").images.shape[1] == 128


def test_animated_images_are_counted(class_folders):
    """Of a GIF, a WebP or a TIFF with several images the first is used."""
    frames = [smooth_image(seed) for seed in range(3)]
    for label, kind in zip(("ant", "cat", "dog"), ("GIF", "WEBP", "TIFF"), strict=True):
        raw = encode_image(frames[0], kind, save_all=True, append_images=frames[1:])
        (class_folders / label / f"more.{kind}").write_bytes(raw)
    stored = ImageFiles(sorted(class_folders.rglob("*.*")))
    _, reason = choose_image_size(stored)
    assert reason.endswith("; 3 of 33 images have several frames, the first is used")
    first = [np.asarray(stored.load_image(i)) for i in range(33) if "more" in stored.paths[i]]
    for image in first[1:]:
        assert np.abs(image.astype(int) - np.asarray(frames[0])).mean() < 9
