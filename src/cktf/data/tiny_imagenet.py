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


def open_tiny_imagenet(directory: Path | None, split: str, reading: ReadOptions) -> SplitSource:
    """One split from `directory`, or from `tiny-imagenet-200` below it.

    Raises:
        DataError: no directory, or a file of the layout that is missing or not as it should be.
    """
    if directory is None:
        raise DataError("Tiny ImageNet needs --data-dir: the folder with tiny-imagenet-200.")
    places = (directory, directory / "tiny-imagenet-200")
    folder = next((place for place in places if (place / "wnids.txt").is_file()), None)
    if folder is None:
        raise DataError(
            f"Tiny ImageNet: no wnids.txt in {places[0]} or {places[1]}. Give as --data-dir the "
            "folder that tiny-imagenet-200.zip was unpacked in."
        )
    wnids = (folder / "wnids.txt").read_text(encoding="utf-8").split()
    twice = [wnid for wnid, count in Counter(wnids).items() if count > 1]
    if len(wnids) < 2 or twice:
        what = f"twice {abbreviate(twice)}" if twice else f"{len(wnids)}"
        raise DataError(
            f"{folder / 'wnids.txt'} names each class once, two or more; found {what}. {_ADVICE}"
        )
    found = _train(folder, wnids) if split == "train" else _validation(folder, wnids)
    paths, labels = [path for path, _ in found], torch.tensor([label for _, label in found])
    classes = _words(folder, wnids)
    return SplitSource("tiny-imagenet", split, ImageFiles(paths), labels, classes, MEAN, STD, _SIZE)


def _words(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first word for each class, with its number where two classes share one."""
    path = folder / "words.txt"
    if not path.is_file():
        raise DataError(f"Tiny ImageNet: {folder} has no words.txt. {_ADVICE}")
    lines = path.read_text(encoding="utf-8").splitlines()
    words = {wnid: text for wnid, _, text in (line.partition("\t") for line in lines)}
    missing = [wnid for wnid in wnids if not words.get(wnid, "").strip()]
    if missing:
        raise DataError(f"{path} has no words for {abbreviate(missing)} of wnids.txt. {_ADVICE}")
    names = [words[wnid].split(",")[0].strip() for wnid in wnids]
    shared = Counter(names)
    return tuple(
        name if shared[name] == 1 else f"{name} ({wnid})"
        for name, wnid in zip(names, wnids, strict=True)
    )


def _train(folder: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    found, empty = [], []
    for label, wnid in enumerate(wnids):
        paths = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        found += [(path, label) for path in paths]
        empty += [] if paths else [wnid]
    if empty:
        raise DataError(
            f"Tiny ImageNet: each class of wnids.txt has images in {folder}/train/WNID/images; "
            f"none for {abbreviate(empty)}. {_ADVICE}"
        )
    return found


def _validation(folder: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    path = folder / "val" / "val_annotations.txt"
    if not path.is_file():
        raise DataError(f"Tiny ImageNet: {folder}/val has no val_annotations.txt. {_ADVICE}")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        if wnid not in label_of:
            raise DataError(
                f"{path}, line {number}: a file, a tab and a class of wnids.txt are expected, "
                f"found {line!r}. {_ADVICE}"
            )
        found.append((folder / "val" / "images" / name, label_of[wnid]))
    present = {entry.name for entry in (folder / "val" / "images").glob("*")}
    missing = [image.name for image, _ in found if image.name not in present]
    if missing or not found:
        what = f"no {abbreviate(missing)}" if missing else "no line in it"
        raise DataError(f"{path} names every validation image; {what} in val/images. {_ADVICE}")
    return found
