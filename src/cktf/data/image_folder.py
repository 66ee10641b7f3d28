"""A folder of images with a subfolder for each class.

Labeled images are in `DIR/train/CLASS` with `DIR/test/CLASS` or `DIR/val/CLASS`, or in `DIR/CLASS`
alone. Without a test folder a fifth of each class is the test split, chosen by the hashes of file
names: whatever the seed and whatever images are added later, a teacher has not been trained on the
images that its student is tested on. Images without labels are in `DIR/unlabeled` or in `DIR`
itself.
"""

import os
import statistics
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from cktf.data.image_set import NO_LABEL, UNLABELED_SPLIT
from cktf.data.split_loading import ReadOptions, SplitSource, abbreviate
from cktf.data.splits import split_by_name
from cktf.data.stored_images import ImageFiles, StoredImages
from cktf.errors import DataError

# Of ImageNet, as is usual for photographs.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_FRACTION = 0.2
# Names of split folders, in any case. The first test folder that is there is used.
_TRAIN_NAMES = ("train", "training")
_TEST_NAMES = ("test", "tests", "testing", "val", "valid", "validation")
_SIZE_SAMPLE = 1000
_SIZE_STEP, _MAX_SIZE = 32, 224
_LAYOUT = (
    "Images are in DIR/train/CLASS and DIR/test/CLASS (or val), or in DIR/CLASS alone, with two "
    "classes or more"
)
_EXTENSIONS = (
    "File names end in .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff or .webp, in any case; convert "
    "other formats."
)

_ClassFiles = dict[str, list[Path]]


def open_image_folder(directory: Path | None, split: str, options: ReadOptions) -> SplitSource:
    """Locate one split, "train", "test" or "unlabeled", of an image folder.

    Raises:
        DataError: no folder, no classes, classes without images, or splits whose classes differ.
    """
    if directory is None:
        raise DataError("imagefolder needs a folder: imagefolder:DIR, or --data-dir DIR.")
    name = f"imagefolder:{directory}"
    if not directory.is_dir():
        raise DataError(f"{name}: there is no such folder. Give one with a folder for each class.")
    if split == UNLABELED_SPLIT:
        return _open_unlabeled(name, directory, options)
    train, test, notes = _find_train_and_test_files(name, directory, split)
    files, labels = _flatten(train if split == "train" or test is None else test)
    train_files = files if test is None else _flatten(train)[0]
    if test is None and options.hold_out:
        names = [path.relative_to(directory).as_posix() for path in files]
        if single := [label for label, paths in train.items() if len(paths) < 2]:
            raise DataError(
                f"{name}: to hold out a test split, each class needs two images or more; one in "
                f"{abbreviate(single)}. Add images, or a test folder beside train."
            )
        remaining, held_out = split_by_name(labels, names, TEST_FRACTION)
        train_files = [files[i] for i in remaining.tolist()]
        positions = remaining if split == "train" else held_out
        files, labels = [files[i] for i in positions.tolist()], labels[positions]
        notes = ["a fifth of each class held out for the test", *notes]
    size = options.image_size
    if size is None:
        size, reason = choose_image_size(ImageFiles(train_files))
        notes.append(reason)
    note = "; ".join(notes) if split == "train" else ""
    return SplitSource(
        name, split, ImageFiles(files), labels, tuple(train), MEAN, STD, size, note=note
    )


def _open_unlabeled(name: str, directory: Path, options: ReadOptions) -> SplitSource:
    """Images without labels: of DIR/unlabeled, or DIR itself, or else the training images."""
    folder = directory / UNLABELED_SPLIT
    if folder.is_dir():
        files = _list_images(folder)
        if not files:
            raise DataError(
                f"{name}: no images are in {folder}. {_EXTENSIONS} Add images, or remove the "
                "folder to use the training images without their labels."
            )
    else:
        files = [directory / n for n in sorted(os.listdir(directory)) if _is_image(n)]
    if not files:
        labeled = open_image_folder(directory, "train", options)
        labels = torch.full_like(labeled.labels, NO_LABEL)
        return replace(labeled, split=UNLABELED_SPLIT, labels=labels, classes=())
    size, note = options.image_size, ""
    if size is None:
        try:
            size = open_image_folder(directory, "train", options).size
            note = f"image_size {size}, as of its images with labels"
        except DataError:  # no labeled images are there
            size, note = choose_image_size(ImageFiles(files))
    labels = torch.full((len(files),), NO_LABEL)
    return SplitSource(
        name, UNLABELED_SPLIT, ImageFiles(files), labels, (), MEAN, STD, size, note=note
    )


def choose_image_size(stored: StoredImages) -> tuple[int, str]:
    """Choose the size at which images of many sizes are used, and say why.

    It is the median of the shorter sides, of at most a thousand images evenly spaced, rounded to a
    multiple of 32, and from 32 to 224.
    """
    sides = []
    for position in range(0, len(stored), max(1, -(-len(stored) // _SIZE_SAMPLE))):
        try:
            with stored.open_image(position) as image:
                sides.append(min(image.size))
        except Exception:  # loading reports broken images
            continue
    median = statistics.median(sides) if sides else _SIZE_STEP
    size = min(max(_SIZE_STEP, round(median / _SIZE_STEP) * _SIZE_STEP), _MAX_SIZE)
    return size, f"shorter sides have a median of {median:g}: image_size {size}"


def _find_train_and_test_files(
    name: str, root: Path, split: str
) -> tuple[_ClassFiles, _ClassFiles | None, list[str]]:
    """Training and test files by class (None without a test folder), and notes for the log."""
    folders = _list_folders(root)
    by_name = {folder.name.casefold(): folder for folder in folders}
    train = next((by_name[n] for n in _TRAIN_NAMES if n in by_name), None)
    test_folders = [by_name[n] for n in _TEST_NAMES if n in by_name]
    test = next(filter(_list_folders, test_folders), None)
    class_folders = [f for f in folders if f.name.casefold() != UNLABELED_SPLIT]
    only_splits = all(f in (train, *test_folders) for f in class_folders)
    if train is not None and _list_folders(train):
        train_files, notes = _list_classes(name, train, _list_folders(train))
        if test is None and test_folders:
            raise DataError(
                f"{name}: {test_folders[0]} has no class folders. {_LAYOUT}. Move it away to hold "
                "out a fifth of the training images for the test."
            )
        if test is None:
            return train_files, None, notes
        test_files, _ = _list_classes(name, test, _list_folders(test))
        _check_same_classes(name, test.name, set(train_files), set(test_files))
        return train_files, test_files, [f"tested on {test.name}", *notes]
    if test is not None and only_splits and split == "test":
        test_files, _ = _list_classes(name, test, _list_folders(test))
        return test_files, test_files, []
    if class_folders and (test is not None or only_splits):
        found = abbreviate([folder.name for folder in class_folders])
        raise DataError(f"{name}: found {found}, and no class folders in train. {_LAYOUT}.")
    class_files, notes = _list_classes(name, root, class_folders)
    return class_files, None, notes


def _check_same_classes(name: str, split: str, train: set[str], test: set[str]) -> None:
    if train != test:
        only_train = abbreviate(sorted(train - test)) or "none"
        only_test = abbreviate(sorted(test - train)) or "none"
        raise DataError(
            f"{name}: train and {split} must have the same classes; only in train: {only_train}; "
            f"only in {split}: {only_test}. Rename, add or remove class folders."
        )


def _list_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_classes(name: str, parent: Path, folders: list[Path]) -> tuple[_ClassFiles, list[str]]:
    """Image files of each class folder, and a note if other files are there."""
    if len(folders) < 2:
        found = f"only the class folder {folders[0].name}" if folders else "no class folders"
        images = sum(map(_is_image, os.listdir(parent)))
        loose = f" and {images:,} images outside of them" if images else ""
        raise DataError(f"{name}: {parent} has {found}{loose}. {_LAYOUT}.")
    ignored = Counter[str]()
    class_files = {folder.name: _list_images(folder, ignored) for folder in folders}
    empty = [str(parent / label) for label, files in class_files.items() if not files]
    if empty:
        raise DataError(
            f"{name}: a class has at least one image; none in {abbreviate(empty)}. {_EXTENSIONS} "
            "Add images or remove the folders."
        )
    counts = abbreviate([f"{count:,} {extension}" for extension, count in ignored.most_common()])
    return class_files, [f"no images: {counts}"] if ignored else []


def _list_images(folder: Path, ignored: Counter[str] | None = None) -> list[Path]:
    """All images in a folder and its subfolders, sorted; `ignored` counts other extensions."""
    files: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(parent)
        if real_path in visited:  # a symbolic link that leads back
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in names if not name.startswith("."))
        files += [Path(parent, name) for name in names if _is_image(name)]
        if ignored is not None:
            extensions = (_extension(name) for name in names if not _is_image(name))
            ignored.update(extension or "without an extension" for extension in extensions)
    return files


@cache
def _image_extensions() -> frozenset[str]:
    formats = Image.registered_extensions()
    return frozenset(extension for extension, kind in formats.items() if kind in Image.OPEN)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
    return not name.startswith(".") and _extension(name) in _image_extensions()


def _flatten(class_files: _ClassFiles) -> tuple[list[Path], torch.Tensor]:
    """All files, and their labels [N]."""
    counts = torch.tensor([len(files) for files in class_files.values()], dtype=torch.int64)
    labels = torch.arange(len(class_files)).repeat_interleave(counts)
    return [path for files in class_files.values() for path in files], labels
