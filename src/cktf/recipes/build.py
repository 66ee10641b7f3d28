"""Recipes checked, and their data sets built. Only this package turns names into objects."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.data import Subset

from cktf.data import (
    UNLABELED_SPLIT,
    VALIDATION_SEED,
    DatasetLoader,
    Images,
    ImageSet,
    Loader,
    MemoryLoader,
    ReadOptions,
    StreamedImages,
    get_dataset_info,
    get_labels,
    load_dataset,
    load_splits,
    open_dataset,
    sample_per_class,
    split_validation,
)
from cktf.data.config import DataConfig
from cktf.engine import preserve_rng, trackers_of
from cktf.errors import CktfError, DataError, RecipeError, nearest
from cktf.objectives import METHODS, parse, term_names
from cktf.recipes.networks import check_network, check_teacher
from cktf.recipes.schema import (
    CUSTOM,
    DistillRecipe,
    Recipe,
    TrainRecipe,
    TransferRecipe,
)

# Largest test batch, in images and in pixels.
_MAX_TEST_BATCH, _MAX_TEST_PIXELS = 500, 500 * 64 * 64
# Fields for data sets by name: a user's own data set does these things itself.
_NAMED_DATASET_FIELDS = (
    "image_size",
    "channels",
    "resized_crops",
    "views",
    "skip_broken",
    "classes",
    "per_class",
)


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


class Problems:
    """Problems with a recipe, collected so that all are reported at once.

    Attributes:
        messages: one per problem, each beginning with the name of its field.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collect(self, field: str = "") -> Iterator[None]:
        """Collect errors raised inside the block, under a field's name if it has one."""
        prefix = f"{field}: " if field else ""
        try:
            yield
        except RecipeError as error:
            self.messages += [f"{prefix}{problem}" for problem in error.problems]
        except CktfError as error:
            self.messages.append(f"{prefix}{error}")

    def mention(self, field: str) -> bool:
        """Whether a problem is of a field, or of one inside it."""
        return any(message.startswith((f"{field}:", f"{field}.")) for message in self.messages)

    def raise_if_any(self) -> None:
        """Raise all problems in one error."""
        if self.messages:
            raise RecipeError(self.messages)


def check_recipe(recipe: Recipe) -> Problems:
    """Find every problem with a recipe that shows without reading images or weights."""
    problems = Problems()
    if recipe.data.name != CUSTOM:
        with problems.collect("data.name"):
            info = get_dataset_info(recipe.data.name)
            if info.needs_directory and recipe.data.dir is None:
                problems.messages.append(
                    f"data.dir: {recipe.data.name} needs a folder: --data-dir DIR."
                )
    else:
        problems.messages += [
            f"data.{field}: is for data sets by name, given {getattr(recipe.data, field)!r}. Do it "
            "in your own data set."
            for field in _NAMED_DATASET_FIELDS
            if getattr(recipe.data, field) != DataConfig.model_fields[field].default
        ]
    network = recipe.model if isinstance(recipe, TrainRecipe) else recipe.student
    if network != CUSTOM:
        with problems.collect("model" if isinstance(recipe, TrainRecipe) else "student"):
            check_network(network)
    if not recipe.data.labels:
        problems.messages += _check_unlabeled(recipe)
    if isinstance(recipe, DistillRecipe):
        problems.messages += _check_teacher_cache(recipe)
        with problems.collect("method"):
            _check_options(recipe, problems)
        if recipe.teacher != CUSTOM:
            with problems.collect("teacher"):
                check_teacher(recipe.teacher, recipe.teacher_weights)
    if recipe.runtime.device == "cuda" and not torch.cuda.is_available():
        problems.messages.append("runtime.device: PyTorch sees no 'cuda' here. Use cpu or auto.")
    with problems.collect("runtime.track"):
        trackers_of(recipe.runtime.track)
    return problems


def _check_unlabeled(recipe: Recipe) -> Iterator[str]:
    """Yield problems of a recipe whose images have no labels."""
    if isinstance(recipe, TrainRecipe):
        yield "data.labels: training without a teacher needs labels."
    else:
        named = term_names(recipe.method, labeled=False)
        for name in sorted(named & METHODS.keys()):
            if "labels" in METHODS[name].requires:
                yield f"method: {name} needs labels, and there are none. Leave it out."
        if named and all(n in METHODS and METHODS[n].only_initializes for n in named):
            yield (
                f"method: {' and '.join(sorted(named))} only initialize the student, and without "
                "labels nothing is left to train it on. Add a method such as cktf."
            )
    for field in ("validation", "per_class"):
        if getattr(recipe.data, field):
            yield f"data.{field}: needs labels, and there are none."


def _check_teacher_cache(recipe: DistillRecipe) -> Iterator[str]:
    """Yield problems of a teacher cache, which needs a finite set of views."""
    if recipe.teacher_cache is None:
        return
    if recipe.data.name == CUSTOM:
        yield (
            "teacher_cache: your own data set augments its images itself, so that no view "
            "repeats. Use a data set by name, or train without a cache."
        )
    elif recipe.data.augment and not recipe.data.views:
        yield (
            "teacher_cache: every epoch has new augmentations, which no cache holds. Give a number "
            "of views: --teacher-cache views=8, or --set data.views=8."
        )


def _check_options(recipe: DistillRecipe, problems: Problems) -> None:
    """Check the options of each method, and convert their values."""
    named = parse(recipe.method, labeled=recipe.data.labels)
    for name, values in recipe.options.items():
        if name not in named:
            problems.messages.append(
                f"options.{name}: the method {recipe.method!r} does not name it. "
                f"{nearest(name, named)}"
            )
            continue
        known = METHODS[name].options()
        for option, value in values.items():
            if option not in known:
                problems.messages.append(
                    f"options.{name}.{option}: {name} has no such option. {nearest(option, known)}"
                )
                continue
            try:
                # The converted value is kept: YAML 1.1 reads 1e1 as a string.
                values[option] = TypeAdapter(known[option].annotation).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                problems.messages.append(f"options.{name}.{option}: {message}, given {value!r}.")


def match_image_sizes(recipe: TransferRecipe) -> TransferRecipe:
    """Resize the labeled images of a transfer to the size of the unlabeled ones.

    A recipe with an `image_size` stays as it is.
    """
    data, labeled = recipe.data, recipe.labeled
    if CUSTOM in (data.name, labeled.name) or data.image_size or labeled.image_size:
        return recipe
    try:
        size, labeled_size = (
            open_dataset(section.name, Path(section.dir) if section.dir else None, split).size
            for section, split in ((data, UNLABELED_SPLIT), (labeled, "train"))
        )
    except DataError:
        # Reading the data sets later reports the error.
        return recipe
    if size == labeled_size:
        return recipe
    return recipe.model_copy(update={"labeled": labeled.model_copy(update={"image_size": size})})


def _load_splits(section: DataConfig, *splits: str) -> list[ImageSet[Images]]:
    directory = None if section.dir is None else Path(section.dir)
    read_options = ReadOptions(
        section.image_size, section.channels, section.skip_broken, crops=section.resized_crops
    )
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
        check_same_classes(loaded)
    return [data.select_classes(section.classes) if section.classes else data for data in loaded]


def check_same_classes(sets: Sequence[ImageSet[Images]]) -> None:
    """Check that data sets to train and to test on have the same classes.

    Raises:
        DataError: their classes differ.
    """
    for other in sets[1:]:
        if tuple(other.classes) != tuple(sets[0].classes):
            different = sorted(set(sets[0].classes) ^ set(other.classes)) or ["their order"]
            raise DataError(
                f"Training and test images have the same classes; those of {sets[0].name} and "
                f"{other.name} differ in {', '.join(different[:5])}. Name another --test."
            )


def load_split(section: DataConfig, split: str) -> ImageSet[Images]:
    """Load one split of a named data set.

    Raises:
        DataError: files that are missing or damaged.
    """
    (data,) = _load_splits(section, split)
    return data


def build_data(section: DataConfig, seed: int) -> Data:
    """Build the images and loaders of a named data set, in memory or streamed from disk.

    Raises:
        DataError: files that are missing or damaged.
    """
    test: ImageSet[Images] | None = None
    if section.labels:
        train, test = _load_splits(section, "train", "test")
    else:
        # Choosing classes needs labels, which are removed afterwards.
        train = load_split(section, "train" if section.classes else UNLABELED_SPLIT)
        train = train.without_labels()
    if section.per_class is not None:
        train = train.subset(sample_per_class(train.labels, section.per_class, seed))
    data = with_loaders(train, test, section, seed)
    splits = {"train": data.raw_train, "validation": data.raw_validation, "test": test}
    lines = [
        f"{name}: {images.describe()}" for name, images in splits.items() if images is not None
    ]
    if isinstance(train.images, StreamedImages) and not section.workers:
        lines.append("read by one process; use several with --set data.workers=8")
    return replace(data, name=section.name, description=f"{section.name}: {' | '.join(lines)}")


def with_loaders(train: Any, test: Any, section: DataConfig, seed: int) -> Data:
    """Hold out validation images, and build the loaders of all splits.

    Args:
        train: a named data set, or a user's own.
        test: likewise; None without test images.
        section: how to hold out and feed them.
        seed: of the order of training images.
    """
    has_class_names = isinstance(train, ImageSet) and train.labeled
    validation: Any = None
    if section.validation:
        train_indices, validation_indices = split_validation(
            get_labels(train), section.validation, VALIDATION_SEED
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
    check_batches(len(train), size)
    if not isinstance(train, ImageSet):
        return DatasetLoader(
            train, size, train=True, workers=workers, seed=seed, labeled=section.labels
        )
    augment, views = section.augment, section.views
    if isinstance(train.images, StreamedImages):
        return DatasetLoader(
            train, size, train=True, augment=augment, workers=workers, seed=seed, views=views
        )
    return MemoryLoader(train, size, train=True, augment=augment, seed=seed, views=views)


def build_test_loader(test: Any, workers: int = 0) -> Loader:
    """Build batches of all images of a test set, in order."""
    if not isinstance(test, ImageSet):
        size = _test_batch_size(_count_pixels(test, workers))
        return DatasetLoader(test, size, train=False, workers=workers)
    _, height, width, _ = test.images.shape
    size = _test_batch_size(height * width)
    if isinstance(test.images, StreamedImages):
        return DatasetLoader(test, size, train=False, workers=workers)
    return MemoryLoader(test, size, train=False)


def _test_batch_size(pixels: int) -> int:
    """Return the batch size for test images of so many pixels."""
    return max(1, min(_MAX_TEST_BATCH, _MAX_TEST_PIXELS // max(1, pixels)))


def _count_pixels(data: Any, workers: int) -> int:
    """Count the pixels of the first image of a user's data set; 0 if it cannot be read."""
    first = Subset(data, range(min(1, len(data))))
    # A data set that workers read must not be opened in this process before they fork.
    loader = DatasetLoader(first, 1, train=False, workers=min(workers, 1), labeled=False)
    with suppress(DataError), preserve_rng(torch.device("cpu")):
        for batch in loader.epoch(0):
            return batch.images.shape[2] * batch.images.shape[3]
    return 0


def check_batches(samples: int, batch_size: int) -> None:
    """Raise unless an epoch has at least one whole batch."""
    if samples < batch_size:
        raise DataError(
            f"The training set has {samples} images, fewer than one batch of {batch_size}. Use "
            "--set data.batch_size=… of at most that."
        )
