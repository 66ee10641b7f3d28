"""Tiny ImageNet in the folders of its archive.

Source: Le and Yang, "Tiny ImageNet Visual Recognition Challenge", CS 231N, Stanford, 2015. 100,000
training and 10,000 validation images of 200 classes, 64x64; the validation images are the test
split here, since those of its own test folder have no labels.
"""

from collections import Counter
from pathlib import Path

import torch

from cktf.data.split_loading import ReadOptions, SplitSource, abbreviate
from cktf.data.stored_images import ImageFiles
from cktf.errors import DataError

MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
_SIZE = 64
_ADVICE = "Fetch and unpack tiny-imagenet-200.zip again."


def open_tiny_imagenet(directory: Path | None, split: str, _: ReadOptions) -> SplitSource:
    """Locate one split in `directory` or in `tiny-imagenet-200` below it.

    Raises:
        DataError: no directory, or files of the layout that are missing or malformed.
    """
    if directory is None:
        raise DataError("Tiny ImageNet needs --data-dir: the folder with tiny-imagenet-200.")
    folders = (directory, directory / "tiny-imagenet-200")
    folder = next((f for f in folders if (f / "wnids.txt").is_file()), None)
    if folder is None:
        raise DataError(
            f"Tiny ImageNet: no wnids.txt in {folders[0]} or {folders[1]}. Give as --data-dir the "
            "folder that tiny-imagenet-200.zip was unpacked in."
        )
    wnids = (folder / "wnids.txt").read_text(encoding="utf-8").split()
    repeated = [wnid for wnid, count in Counter(wnids).items() if count > 1]
    if len(wnids) < 2 or repeated:
        found = f"twice {abbreviate(repeated)}" if repeated else f"{len(wnids)}"
        raise DataError(
            f"{folder / 'wnids.txt'} names each class once, two or more; found {found}. {_ADVICE}"
        )
    list_images = _list_train if split == "train" else _list_validation
    paths, numbers = zip(*list_images(folder, wnids), strict=True)
    labels, classes = torch.tensor(numbers, device="cpu"), _read_class_names(folder, wnids)
    return SplitSource("tiny-imagenet", split, ImageFiles(paths), labels, classes, MEAN, STD, _SIZE)


def _read_class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first word for each class, followed by its WordNet ID where two classes share it."""
    path = folder / "words.txt"
    if not path.is_file():
        raise DataError(f"Tiny ImageNet: {folder} has no words.txt. {_ADVICE}")
    lines = path.read_text(encoding="utf-8").splitlines()
    words = {wnid: text for wnid, _, text in (line.partition("	") for line in lines)}
    names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    counts = Counter(names)
    return tuple(
        name if counts[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    )


def _list_train(folder: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    images, empty = [], []
    for label, wnid in enumerate(wnids):
        paths = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        images += [(path, label) for path in paths]
        empty += [] if paths else [wnid]
    if empty:
        raise DataError(
            f"Tiny ImageNet: each class of wnids.txt has images in {folder}/train/WNID/images; "
            f"none for {abbreviate(empty)}. {_ADVICE}"
        )
    return images


def _list_validation(folder: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    path = folder / "val" / "val_annotations.txt"
    if not path.is_file():
        raise DataError(f"Tiny ImageNet: {folder}/val has no val_annotations.txt. {_ADVICE}")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    images = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        if wnid not in labels:
            raise DataError(
                f"{path}, line {number}: a file, a tab and a class of wnids.txt are expected, "
                f"found {line!r}. {_ADVICE}"
            )
        images.append((folder / "val" / "images" / name, labels[wnid]))
    present = {entry.name for entry in (folder / "val" / "images").glob("*")}
    missing = [image.name for image, _ in images if image.name not in present]
    if missing or not images:
        problem = f"no {abbreviate(missing)} in val/images" if missing else "no line in it"
        raise DataError(f"{path} names every validation image; {problem}. {_ADVICE}")
    return images
