"""The data sets that a recipe names: their images and loaders."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from cktf.data import (
    UNLABELED_SPLIT,
    VALIDATION_SEED,
    VALIDATION_SPLIT,
    DatasetLoader,
    Images,
    ImageSet,
    Loader,
    MemoryLoader,
    ReadOptions,
    StreamedImages,
    find_hidden_folder,
    get_labels,
    list_splits,
    load_dataset,
    load_splits,
    open_dataset,
    sample_per_class,
    split_validation,
)
from cktf.data.config import DataConfig
from cktf.engine import preserve_rng
from cktf.errors import DataError
from cktf.recipes.schema import CUSTOM, TransferRecipe

# Largest test batch, in images and in pixels.
_MAX_TEST_BATCH, _MAX_TEST_PIXELS = 500, 500 * 64 * 64


@dataclass(frozen=True)
class Data:
    """The images of a run and their loaders.

    Attributes:
        train: training batches.
        test: test batches; None without test images.
        raw_train, raw_test: data sets that the batches come from.
        name: of the data set, for the summary.
        classes: their names; None for a user's own data set, whose networks decide.
        validation: batches held out of the training images; None without any.
        raw_validation: the data set that these come from.
        labeled: whether the training images have labels that may be read.
        description: one line on the images, for the log; empty for a user's own data set.
    """

    train: Loader
    test: Loader | None
    raw_train: Any
    raw_test: Any
    name: str
    classes: tuple[str, ...] | None
    validation: Loader | None = None
    raw_validation: Any = None
    labeled: bool = True
    description: str = ""


def match_labeled_image_size(recipe: TransferRecipe) -> TransferRecipe:
    """Resize the labeled images of a transfer to the size of the unlabeled ones.

    A recipe with an `image_size` stays as it is.
    """
    data, labeled = recipe.data, recipe.labeled
    if CUSTOM in (data.name, labeled.name) or data.image_size or labeled.image_size:
        return recipe
    try:
        size, labeled_size = (
            open_dataset(
                section.name,
                Path(section.dir) if section.dir else None,
                split,
                _read_options(section),
            ).size
            for section, split in ((data, UNLABELED_SPLIT), (labeled, "train"))
        )
    except DataError:
        # Reading the data sets later reports the error.
        return recipe
    if size == labeled_size:
        return recipe
    return recipe.model_copy(update={"labeled": labeled.model_copy(update={"image_size": size})})


def _read_options(section: DataConfig) -> ReadOptions:
    return ReadOptions(
        section.image_size,
        section.channels,
        section.skip_broken,
        crops=section.resized_crops,
        image_column=section.image_column,
        label_column=section.label_column,
    )


def _load_splits(
    section: DataConfig, *splits: str, hold_out: bool = True
) -> list[ImageSet[Images]]:
    directory = None if section.dir is None else Path(section.dir)
    read_options = replace(_read_options(section), hold_out=hold_out)
    if section.test in (None, section.name):
        loaded = load_splits(section.name, directory, splits, read_options)
    else:
        read_options = replace(read_options, hold_out=False)
        if read_options.image_size is None and "test" in splits:
            # Image files of many sizes: test images are resized as the training images are.
            size = open_dataset(section.name, directory, "train", read_options).size
            read_options = replace(read_options, image_size=size)
        names = {"test": section.test}
        loaded = [
            load_dataset(names.get(split) or section.name, directory, split, read_options)
            for split in splits
        ]
        classes = loaded[0].classes
        for position, other in enumerate(loaded):
            if different := sorted(set(classes) ^ set(other.classes)):
                raise DataError(
                    f"Training and test images have the same classes; those of {loaded[0].name} "
                    f"and {other.name} differ in {', '.join(different[:5])}. Name "
                    "another with --set data.test=…."
                )
            if tuple(other.classes) != tuple(classes):
                # The same classes, numbered in another order.
                loaded[position] = other.select_classes(classes)
    return [data.select_classes(section.classes) if section.classes else data for data in loaded]


def load_split(section: DataConfig, split: str, *, hold_out: bool = True) -> ImageSet[Images]:
    """Load one split of a named data set.

    Args:
        section: which data set.
        split: "train", "test" or "unlabeled".
        hold_out: see `ReadOptions`.

    Raises:
        DataError: files that are missing or damaged.
    """
    (data,) = _load_splits(section, split, hold_out=hold_out)
    return data


def build_data(section: DataConfig, seed: int) -> Data:
    """Build the images and loaders of a named data set, in memory or streamed from disk.

    Raises:
        DataError: files that are missing or damaged.
    """
    test: ImageSet[Images] | None = None
    validation: ImageSet[Images] | None = None
    directory = None if section.dir is None else Path(section.dir)
    remarks = [find_hidden_folder(section.name, directory)]
    if section.labels:
        hold_out = section.test in (None, section.name)
        options = replace(_read_options(section), hold_out=hold_out)
        splits = list_splits(section.name, directory, options)
        if VALIDATION_SPLIT not in splits:
            train, test = _load_splits(section, "train", "test")
        elif section.validation:
            train, test = _load_splits(section, "train", "test")
            remarks.append("its own validation images are left out, since data.validation is set")
        else:
            train, validation, test = _load_splits(section, "train", VALIDATION_SPLIT, "test")
            remarks.append("the weights of the epoch that is best on validation are kept")
    else:
        # Choosing classes needs labels, which are removed afterwards.
        train = load_split(section, "train" if section.classes else UNLABELED_SPLIT)
        train = train.without_labels()
    if section.per_class is not None:
        chosen = sample_per_class(train.labels, section.per_class, seed, train.classes)
        train = train.subset(chosen)
    data = with_loaders(train, test, section, seed, validation)
    loaded = {"train": data.raw_train, "validation": data.raw_validation, "test": test}
    lines = [
        f"{name}: {images.describe()}" for name, images in loaded.items() if images is not None
    ]
    if isinstance(train.images, StreamedImages) and not section.workers:
        remarks.append("read by one process; use several with --set data.workers=8")
    lines += filter(None, remarks)
    return replace(data, name=section.name, description=f"{section.name}: {' | '.join(lines)}")


def with_loaders(
    train: Any, test: Any, section: DataConfig, seed: int, validation: Any = None
) -> Data:
    """Hold out validation images if the section says so, and build the loaders of all splits.

    Args:
        train: a named data set, or a user's own.
        test: likewise; None without test images.
        section: how to hold out and feed them.
        seed: of the order of training images.
        validation: the validation images of a data set that has some.
    """
    has_class_names = isinstance(train, ImageSet) and train.labeled
    if section.validation:
        train_indices, validation_indices = split_validation(
            get_labels(train),
            section.validation,
            VALIDATION_SEED,
            train.classes if has_class_names else None,
        )
        validation = select_samples(train, validation_indices)
        train = select_samples(train, train_indices)
        if isinstance(validation, ImageSet):
            validation = replace(validation, note="")
    test_loader, validation_loader = (
        None if images is None else build_test_loader(images, section.workers)
        for images in (test, validation)
    )
    return Data(
        train=build_train_loader(train, section, seed),
        test=test_loader,
        raw_train=train,
        raw_test=test,
        name=train.name if isinstance(train, ImageSet) else CUSTOM,
        classes=tuple(train.classes) if has_class_names else None,
        validation=validation_loader,
        raw_validation=validation,
        labeled=section.labels,
    )


def select_samples(data: Any, positions: Tensor) -> Any:
    """Select samples of a data set by their positions."""
    return (
        data.subset(positions) if isinstance(data, ImageSet) else Subset(data, positions.tolist())
    )


def build_train_loader(train: Any, section: DataConfig, seed: int) -> Loader:
    """Build training batches of a named data set, or of a user's own, which augments itself."""
    size, workers = section.batch_size, section.workers
    if len(train) < size:
        raise DataError(
            f"The training set has {len(train)} images, fewer than one batch of {size}. Use "
            "--set data.batch_size=… of at most that."
        )
    augment, views = section.augment, section.views
    if not isinstance(train, ImageSet):
        return DatasetLoader(
            train, size, train=True, workers=workers, seed=seed, labeled=section.labels
        )
    if isinstance(train.images, StreamedImages):
        return DatasetLoader(
            train, size, train=True, augment=augment, workers=workers, seed=seed, views=views
        )
    return MemoryLoader(train, size, train=True, augment=augment, seed=seed, views=views)


def build_test_loader(test: Any, workers: int = 0) -> Loader:
    """Build batches of all images of a test set, in order."""
    if isinstance(test, ImageSet):
        _, height, width, _ = test.images.shape
        pixels = height * width
    else:
        pixels = _count_pixels(test, workers)
    size = max(1, min(_MAX_TEST_BATCH, _MAX_TEST_PIXELS // max(1, pixels)))
    if isinstance(test, ImageSet) and not isinstance(test.images, StreamedImages):
        return MemoryLoader(test, size, train=False)
    return DatasetLoader(test, size, train=False, workers=workers)


def _count_pixels(data: Any, workers: int) -> int:
    """Count the pixels of the first image of a user's data set; 0 if it cannot be read."""
    first = Subset(data, range(min(1, len(data))))
    # A data set that workers read must not be opened in this process before they fork.
    loader = DatasetLoader(first, 1, train=False, workers=min(workers, 1), labeled=False)
    with suppress(DataError), preserve_rng(torch.device("cpu")):
        for batch in loader.epoch(0):
            return batch.images.shape[2] * batch.images.shape[3]
    return 0
