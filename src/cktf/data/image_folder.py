"""A folder of images with a subfolder for each class.

Labeled images are in `DIR/train/CLASS` with `DIR/test/CLASS` and `DIR/val/CLASS`, or in `DIR/CLASS`
alone. Beside a test folder, `val` is the validation split; without one it is the test split.
Without both a fifth of each class is the test split, chosen by the hashes of file names: whatever
the seed and whatever images are added later, a teacher has not been trained on the images that its
student is tested on. Images without labels are in `DIR/unlabeled` or in `DIR` itself.
"""

import os
import re
import statistics
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from unicodedata import normalize

import torch

from cktf.data.image_listing import LeftOut, is_image, list_folders, list_images
from cktf.data.image_set import NO_LABEL, UNLABELED_SPLIT, VALIDATION_SPLIT
from cktf.data.split_loading import ReadOptions, SplitSource, abbreviate
from cktf.data.splits import split_by_name
from cktf.data.stored_images import ImageFiles, StoredImages
from cktf.errors import DataError

# Of ImageNet, as is usual for photographs.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEST_FRACTION = 0.2
# Names of splits, in any case. The first folder of a split that has class folders is used.
SPLIT_NAMES = {
    "train": ("train", "training"),
    VALIDATION_SPLIT: ("val", "valid", "validation", "dev"),
    "test": ("test", "tests", "testing"),
}
_SPLIT_OF_FOLDER = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_SIZE_SAMPLE = 1000
_SIZE_STEP, _MAX_SIZE = 32, 224
_LAYOUT = (
    "Images are in DIR/train/CLASS and DIR/test/CLASS (or val), or in DIR/CLASS alone, with two "
    "classes or more"
)
_EXTENSIONS = (
    "File names end in .avif, .bmp, .gif, .heic, .jpeg, .jpg, .png, .tif, .tiff or .webp, in any "
    "case; convert other formats."
)

# Folders of each class; one may be there in several Unicode forms of its name.
_ClassFolders = dict[str, list[Path]]


def open_image_folder(directory: Path | None, split: str, options: ReadOptions) -> SplitSource:
    """Locate one split of an image folder: "train", "validation", "test" or "unlabeled".

    Raises:
        DataError: no folder, no classes, classes without images, or splits whose classes differ.
    """
    directory = _check_directory(directory)
    name = f"imagefolder:{directory}"
    if split == UNLABELED_SPLIT:
        return _open_unlabeled(name, directory, options)
    left_out = LeftOut()
    # Other folders beside the splits are told once, with the training images.
    beside = left_out if split == "train" else LeftOut()
    parents = _find_splits(name, directory, split, options, beside)
    classes = {s: _find_classes(name, parent) for s, parent in parents.items()}
    for other in parents if "train" in parents else ():
        _check_same_classes(name, parents[other].name, set(classes["train"]), set(classes[other]))
    own = split if split in parents else "train"
    files, labels = _list_files(name, parents[own], classes[own], left_out)
    train_files, notes = files, []
    if "test" not in parents and options.hold_out:
        remaining, held_out = _hold_out_test(name, directory, files, labels, list(classes[own]))
        train_files = [files[i] for i in remaining.tolist()]
        positions = remaining if split == "train" else held_out
        files, labels = [files[i] for i in positions.tolist()], labels[positions]
        notes = [
            "a fifth of each class held out for the test"
            if split == "train"
            else "the fifth of each class that is held out of training"
        ]
    elif split == "train" and options.hold_out:
        notes = [f"tested on {parents['test'].name}"]
    elif "train" in parents and own != "train" and options.image_size is None:
        train_files, _ = _list_files(name, parents["train"], classes["train"], LeftOut())
    if split != "train" and split == own:
        notes = [f"from {parents[split].name}"]
    notes += left_out.notes() if split == own else []
    size = options.image_size
    if size is None:
        size, reason = choose_image_size(ImageFiles(train_files))
        notes += [reason] if split == "train" else []
    note, images = "; ".join(notes), ImageFiles(files)
    return SplitSource(name, split, images, labels, tuple(classes[own]), MEAN, STD, size, note=note)


def find_image_folder_splits(directory: Path | None, options: ReadOptions) -> tuple[str, ...]:
    """Names of the labeled splits; "validation" is one of them if it does not serve as the test.

    Raises:
        DataError: no folder, or one without classes.
    """
    directory = _check_directory(directory)
    parents = _find_splits(f"imagefolder:{directory}", directory, "train", options, LeftOut())
    return ("train", VALIDATION_SPLIT, "test") if VALIDATION_SPLIT in parents else ("train", "test")


def _check_directory(directory: Path | None) -> Path:
    if directory is None:
        raise DataError("imagefolder needs a folder: imagefolder:DIR, or --data-dir DIR.")
    if directory.is_file():
        raise DataError(
            f"imagefolder:{directory}: images are in a folder with a folder for each class, and "
            "this is a file. If it is an archive, extract it and give the folder."
        )
    if not directory.is_dir():
        raise DataError(
            f"imagefolder:{directory}: there is no such folder. Give one with a folder for each "
            "class."
        )
    return directory


def _hold_out_test(
    name: str, directory: Path, files: list[Path], labels: torch.Tensor, classes: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the training images, and of the fifth of each class that is held out."""
    counts = labels.bincount().tolist()
    if single := [label for label, count in zip(classes, counts, strict=True) if count < 2]:
        raise DataError(
            f"{name}: to hold out a test split, each class needs two images or more; one in "
            f"{abbreviate(single)}. Add images, or a test folder beside train."
        )
    names = [normalize("NFC", path.relative_to(directory).as_posix()) for path in files]
    return split_by_name(labels, names, TEST_FRACTION)


def _open_unlabeled(name: str, directory: Path, options: ReadOptions) -> SplitSource:
    """Images without labels: of DIR/unlabeled, or DIR itself, or else the training images."""
    folder, left_out = directory / UNLABELED_SPLIT, LeftOut()
    if folder.is_dir():
        files = list_images(folder, left_out)
        if not files:
            raise DataError(
                f"{name}: no images are in {folder}. {_EXTENSIONS} {left_out.advice()}Add images, "
                "or remove the folder to use the training images without their labels."
            )
    else:
        files = [directory / n for n in sorted(os.listdir(directory)) if is_image(n)]
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
    note = "; ".join([*left_out.notes(), note])
    labels = torch.full((len(files),), NO_LABEL, device="cpu")
    return SplitSource(
        name, UNLABELED_SPLIT, ImageFiles(files), labels, (), MEAN, STD, size, note=note
    )


def choose_image_size(stored: StoredImages) -> tuple[int, str]:
    """Choose the size at which images of many sizes are used, and say why; count animated images.

    It is the median of the shorter sides, of at most a thousand images evenly spaced, rounded to a
    multiple of 32, and from 32 to 224.
    """
    sides, animated = [], 0
    for position in range(0, len(stored), max(1, -(-len(stored) // _SIZE_SAMPLE))):
        try:
            with stored.open_image(position) as image:
                sides.append(min(image.size))
                # An MPO is a photograph with others beside it.
                animated += getattr(image, "is_animated", False) and image.format != "MPO"
        except Exception:  # loading reports broken images
            continue
    median = statistics.median(sides) if sides else _SIZE_STEP
    size = min(max(_SIZE_STEP, round(median / _SIZE_STEP) * _SIZE_STEP), _MAX_SIZE)
    reason = f"shorter sides have a median of {median:g}: image_size {size}"
    if animated:
        reason += f"; {animated} of {len(sides)} images have several frames, the first is used"
    return size, reason


def _find_splits(
    name: str, root: Path, requested: str, options: ReadOptions, left_out: LeftOut
) -> dict[str, Path]:
    """Folders that hold the class folders of each split; `root` itself if there are no splits.

    The requested split is one of them, or it is to be held out of the training images.
    """
    folders = [f for f in list_folders(root) if f.name.casefold() != UNLABELED_SPLIT]
    by_name = {f.name.casefold(): f for f in folders}
    split_of = {by_name[n]: split for n, split in _SPLIT_OF_FOLDER.items() if n in by_name}
    parents: dict[str, Path] = {}
    for folder, split in split_of.items():
        if list_folders(folder):
            parents.setdefault(split, folder)
    is_test_alone = parents and requested == "test" and len(split_of) == len(folders)
    if "train" not in parents and not is_test_alone:
        all_splits = folders and len(split_of) == len(folders)
        if parents or all_splits or _are_misspelled_splits(folders):
            found = abbreviate([f.name + _guess_split(f) for f in folders])
            raise DataError(f"{name}: found {found}, and no class folders in train. {_LAYOUT}.")
        parents = {"train": root}
    elif list(parents) == ["train"] and (flat := [f for f, s in split_of.items() if s != "train"]):
        raise DataError(
            f"{name}: {flat[0]} has no class folders. {_LAYOUT}. Move it away to hold out a fifth "
            "of the training images for the test."
        )
    if VALIDATION_SPLIT in parents and "test" not in parents:
        parents["test"] = parents[VALIDATION_SPLIT]
        if options.hold_out:
            del parents[VALIDATION_SPLIT]
    if requested == VALIDATION_SPLIT and requested not in parents:
        raise DataError(f"{name}: a validation split is in DIR/val beside DIR/train and DIR/test.")
    _count_outside(root, folders, parents, left_out)
    return parents


def _count_outside(
    root: Path, folders: list[Path], parents: dict[str, Path], left_out: LeftOut
) -> None:
    """Count what is outside of the class folders of the training images."""
    for parent in {root, parents.get("train", root)}:
        names = os.listdir(parent)
        left_out.count_hidden(parent, names, names)
        left_out.loose_images += sum(map(is_image, names))
    if parents.get("train") != root:
        for folder in folders:
            is_flat = folder.name.casefold() in _SPLIT_OF_FOLDER and not list_folders(folder)
            remark = " (no class folders)" if is_flat else _guess_split(folder)
            left_out.folders += [folder.name + remark] * (folder not in parents.values())


def _guess_split(folder: Path) -> str:
    """A question to add to the name of a folder that may be meant as that of a split."""
    name = folder.name.casefold()
    if name in _SPLIT_OF_FOLDER:
        return ""
    words = [word for word in re.split("[^a-z]+", name) if word in _SPLIT_OF_FOLDER]
    near = words or get_close_matches(name, _SPLIT_OF_FOLDER, n=1, cutoff=0.7)
    return f" (did you mean {near[0]}?)" if near else ""


def _are_misspelled_splits(folders: list[Path]) -> bool:
    """Whether several folders have names like those of splits, and images only in their folders."""
    splits = [f for f in folders if _guess_split(f) and not any(map(is_image, os.listdir(f)))]
    return len(splits) > 1


def _check_same_classes(name: str, split: str, train: set[str], test: set[str]) -> None:
    if train != test:
        only_train = abbreviate(sorted(train - test)) or "none"
        only_test = abbreviate(sorted(test - train)) or "none"
        raise DataError(
            f"{name}: train and {split} must have the same classes; only in train: {only_train}; "
            f"only in {split}: {only_test}. Rename, add or remove class folders."
        )


def _find_classes(name: str, parent: Path) -> _ClassFolders:
    """The folders of each class, in the order of the classes' names."""
    folders = [f for f in list_folders(parent) if f.name.casefold() != UNLABELED_SPLIT]
    classes: _ClassFolders = {}
    for folder in sorted(folders, key=lambda folder: normalize("NFC", folder.name)):
        # macOS writes letters and their accents as two characters, other systems as one.
        classes.setdefault(normalize("NFC", folder.name), []).append(folder)
    if len(classes) < 2:
        found = f"only the class folder {folders[0].name}" if folders else "no class folders"
        images = sum(map(is_image, os.listdir(parent)))
        loose = f" and {images:,} images outside of them" if images else ""
        nested = len(list_folders(folders[0])) > 1 if folders else False
        advice = f" Is it imagefolder:{folders[0]} that you mean?" if nested else ""
        raise DataError(f"{name}: {parent} has {found}{loose}. {_LAYOUT}.{advice}")
    return classes


def _list_files(
    name: str, parent: Path, classes: _ClassFolders, left_out: LeftOut
) -> tuple[list[Path], torch.Tensor]:
    """All image files, class by class, and their labels [N]."""
    by_class = [
        [p for f in folders for p in list_images(f, left_out)] for folders in classes.values()
    ]
    empty = [str(parent / c) for c, files in zip(classes, by_class, strict=True) if not files]
    if empty:
        raise DataError(
            f"{name}: a class has at least one image; none in {abbreviate(empty)}. {_EXTENSIONS} "
            f"{left_out.advice()}Add images or remove the folders."
        )
    counts = torch.tensor([len(files) for files in by_class], dtype=torch.int64, device="cpu")
    labels = torch.arange(len(classes), device="cpu").repeat_interleave(counts)
    return [path for files in by_class for path in files], labels
