"""Any folder of images: a folder for each class.

Images without labels are those in `DIR/unlabeled` or `DIR` itself. Labeled ones are in
either `DIR/train/CLASS` with `DIR/test/CLASS` or `DIR/val/CLASS`, or `DIR/CLASS` alone, from which
a fifth of each class becomes the test split. That choice is the same in every run, whatever the
run's seed and whatever images are added later: a teacher must not have been trained on the images
its student is tested on.
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

# Of the photographs of ImageNet, as is usual for photographs.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_FRACTION = 0.2
_TESTS = ("test", "val", "valid", "validation")
# What else splits are called, in any case, and what they are called here.
_MEANT = {name: name for name in ("train", *_TESTS, UNLABELED_SPLIT)} | {
    "training": "train", "testing": "test", "tests": "test", "unlabeled": UNLABELED_SPLIT,
}  # fmt: skip
_HELD_OUT = "a fifth of each class held out for the test"
_SAMPLE = 1000
_STEP, _LARGEST = 32, 224

_Images = dict[str, list[Path]]


def open_image_folder(directory: Path | None, split: str, reading: ReadOptions) -> SplitSource:
    """One split, "train" or "test", of a folder of images.

    Raises:
        DataError: no folder, no classes, classes without images, or splits whose classes differ.
    """
    if split == UNLABELED_SPLIT and directory is not None and directory.is_dir():
        return _unlabeled(directory, reading)
    if directory is None:
        raise DataError("imagefolder needs a folder: imagefolder:DIR, or --data-dir DIR.")
    name = f"imagefolder:{directory}"
    if not directory.is_dir():
        raise DataError(f"{name}: there is no such folder. Give one with a folder for each class.")
    train, test, how = _splits(name, directory, split)
    classes = tuple(train)
    paths = {"train": _flat(train), "test": _flat(test or {})}
    labels = {"train": _labels(train), "test": _labels(test or {})}
    if test is None and not reading.hold_out:
        paths["test"], labels["test"], how = paths["train"], labels["train"], ""
    elif test is None:
        names = [path.relative_to(directory).as_posix() for path in paths["train"]]
        kept, held = _held_out(name, labels["train"], classes, names)
        whole = paths["train"], labels["train"]
        for part, positions in (("train", kept), ("test", held)):
            paths[part] = [whole[0][i] for i in positions.tolist()]
            labels[part] = whole[1][positions]
    if reading.image_size is None:
        size, said = usual_size(ImageFiles(paths["train"]))
        how += f"; {said}"
    else:
        size = reading.image_size
    pictures, note = ImageFiles(paths[split]), how if split == "train" else ""
    return SplitSource(name, split, pictures, labels[split], classes, MEAN, STD, size, note=note)


def _unlabeled(directory: Path, reading: ReadOptions) -> SplitSource:
    """Images without labels: of DIR/unlabeled, or of DIR itself, or else those for training."""
    name, own = f"imagefolder:{directory}", directory / UNLABELED_SPLIT
    _check_names(name, directory)
    loose = [directory / n for n in sorted(os.listdir(directory)) if _is_image(n)]
    paths = _images(own) if own.is_dir() else loose
    if own.is_dir() and not paths:
        raise DataError(
            f"{name}: images without labels are in {own}, if it is there, and no images are in it. "
            f"{_ENDINGS} Add images, or remove the folder to have those for training in their "
            "place."
        )
    if not paths:
        source = open_image_folder(directory, "train", reading)
        labels = torch.full_like(source.labels, NO_LABEL)
        return replace(source, split=UNLABELED_SPLIT, labels=labels, classes=())
    size, note = reading.image_size, ""
    if size is None:
        size, note = _labeled_size(directory, reading) or usual_size(ImageFiles(paths))
    labels = torch.full((len(paths),), NO_LABEL)
    return SplitSource(
        name, UNLABELED_SPLIT, ImageFiles(paths), labels, (), MEAN, STD, size, note=note
    )


def _labeled_size(directory: Path, reading: ReadOptions) -> tuple[int, str] | None:
    """Pixels of a side of the images with labels in the same folder, where there are some."""
    try:
        size = open_image_folder(directory, "train", reading).size
    except DataError:
        return None
    return size, f"image_size {size}, as of its images with labels"


def usual_size(pictures: StoredImages) -> tuple[int, str]:
    """Pixels of a side that suit images of many sizes, and how they were chosen.

    The median of the shorter sides, of at most a thousand of them evenly spread, rounded to a
    multiple of 32, and from 32 to 224.
    """
    step = max(1, -(-len(pictures) // _SAMPLE))
    sides = []
    for position in range(0, len(pictures), step):
        try:
            with pictures.open(position) as image:
                sides.append(min(image.size))
        except Exception:  # a broken image is named when it is read
            continue
    median = statistics.median(sides) if sides else _STEP
    size = min(max(_STEP, round(median / _STEP) * _STEP), _LARGEST)
    return size, f"shorter sides have a median of {median:g}: image_size {size}"


def _splits(name: str, root: Path, wanted: str) -> tuple[_Images, _Images | None, str]:
    """Training and test images by class, and a word on the layout; None is to be split off."""
    _check_names(name, root)
    found = {split: root / split for split in ("train", *_TESTS) if _folders(root / split)}
    if "train" not in found:
        own = [folder for folder in _folders(root) if folder.name != UNLABELED_SPLIT]
        if own and {folder.name for folder in own} <= {"train", *_TESTS}:
            if found and wanted == "test":
                first = next(iter(found))
                test, _ = _classes(name, found[first], _folders(found[first]))
                return test, test, ""
            raise DataError(
                f"{name}: training images are in train, in a folder for each class; found "
                f"{abbreviate([folder.name for folder in own])}, and in train no folders. Sort the "
                "images into folders named like their classes, or give the folder of classes "
                "itself."
            )
        if found:
            raise DataError(
                f"{name}: test images are in {abbreviate(list(found))} only where training images "
                f"are in train; found {abbreviate([folder.name for folder in own])} side by side. "
                "Move the folders of classes into train."
            )
        whole, others = _classes(name, root, own)
        return whole, None, f"{_HELD_OUT}{others}"
    train, others = _classes(name, found["train"], _folders(found["train"]))
    tests = [split for split in _TESTS if split in found]
    flat = [split for split in _TESTS if (root / split).is_dir() and split not in found]
    if not tests and flat:
        raise DataError(
            f"{name}: test images are in a folder for each class, as training images are; "
            f"{root / flat[0]} has no folders. Sort them, or move it away: a fifth of the training "
            "images is held out then."
        )
    if not tests:
        return train, None, f"{_HELD_OUT}{others}"
    test, _ = _classes(name, found[tests[0]], _folders(found[tests[0]]))
    _same_classes(name, tests[0], set(train), set(test))
    return train, test, f"tested on {tests[0]}{others}"


def _check_names(name: str, root: Path) -> None:
    """Raise DataError for a folder that would be taken for a class, and is a split by its name."""
    for folder in _folders(root):
        meant = _MEANT.get(folder.name.casefold())
        split = meant == UNLABELED_SPLIT or (meant is not None and _folders(folder))
        if split and folder.name not in ("train", *_TESTS, UNLABELED_SPLIT):
            raise DataError(
                f"{name}: splits are folders called train, test or val, and unlabeled; found "
                f"{folder.name}. Rename it to {meant}, or move it away."
            )


def _same_classes(name: str, split: str, train: set[str], test: set[str]) -> None:
    unknown, missing = sorted(test - train), sorted(train - test)
    if unknown or missing:
        lines = [f"{split} has {abbreviate(unknown)}, which train has not"] if unknown else []
        lines += [f"{split} lacks {abbreviate(missing)}"] if missing else []
        raise DataError(
            f"{name}: train and {split} have the same classes, {len(train)} and {len(test)} were "
            f"found: {'; '.join(lines)}. Rename, add or remove class folders."
        )


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(name: str, folder: Path, folders: list[Path]) -> tuple[_Images, str]:
    """The images of each class folder in a folder, in order, and what else is there."""
    if len(folders) < 2:
        found = f"only {folders[0].name}" if folders else "none"
        loose = sum(map(_is_image, os.listdir(folder)))
        beside = f" and {loose:,} images beside" if loose else ""
        raise DataError(
            f"{name}: images are in a folder for each class, two or more; in {folder} there is "
            f"{found}{beside}. Sort the images into folders named like their classes."
        )
    others = Counter[str]()
    images = {folder.name: _images(folder, others) for folder in folders}
    empty = [label for label, paths in images.items() if not paths]
    if len(empty) == len(images):
        raise DataError(f"{name}: no images in {abbreviate([str(f) for f in folders])}. {_ENDINGS}")
    if empty:
        raise DataError(
            f"{name}: a class has at least one image; none in "
            f"{abbreviate([str(folder / label) for label in empty])}. Add images or remove the "
            "folders."
        )
    told = abbreviate([f"{count:,} {ending}" for ending, count in others.most_common()])
    return images, f"; no images: {told}" if others else ""


def _images(folder: Path, others: Counter[str] | None = None) -> list[Path]:
    """All images in a folder and the folders in it, in an order that no system changes.

    Args:
        folder: where they are.
        others: is told how files end that are none.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        found += [Path(place, name) for name in shown if _is_image(name)]
        if others is not None:
            rest = (_ending(name) for name in shown if not _is_image(name))
            others.update(ending or "without an ending" for ending in rest)
    return found


_USUAL = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
_ENDINGS = f"Their names end like {', '.join(sorted(_USUAL))}, in any case; convert other formats."


@cache
def _endings() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(ending for ending, kind in known.items() if kind in Image.OPEN)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_image(name: str) -> bool:
    return not name.startswith(".") and _ending(name) in _endings()


def _flat(images: _Images) -> list[Path]:
    return [path for paths in images.values() for path in paths]


def _labels(images: _Images) -> torch.Tensor:
    counts = torch.tensor([len(paths) for paths in images.values()], dtype=torch.int64)
    return torch.arange(len(images)).repeat_interleave(counts)


def _held_out(
    name: str, labels: torch.Tensor, classes: tuple[str, ...], names: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    single = [classes[i] for i, count in enumerate(torch.bincount(labels).tolist()) if count < 2]
    if single:
        raise DataError(
            f"{name}: a test split is held out of each class, which takes two images or more; "
            f"one in {abbreviate(single)}. Add images, or a test folder beside train."
        )
    return split_by_name(labels, names, TEST_FRACTION)
