"""From names to objects: the only place where a recipe becomes networks and data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
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
    load_dataset,
    load_splits,
    open_dataset,
    sample_per_class,
    split_validation,
)
from cktf.engine import preserve_rng, trackers_of
from cktf.errors import CktfError, DataError, RecipeError, nearest
from cktf.objectives import METHODS, parse, term_names
from cktf.recipes.networks import check_network, check_teacher
from cktf.recipes.schema import (
    CUSTOM,
    DataSection,
    DistillRecipe,
    Recipe,
    TrainRecipe,
    TransferRecipe,
)

# Images in a batch without gradients, and pixels, for larger images.
_TEST_BATCH, _TEST_PIXELS = 500, 500 * 64 * 64
# What a named data set does, and a user's own does itself.
_NAMED_ONLY = (
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
    """The images of a run, ready to be fed.

    Attributes:
        train: training batches.
        test: test batches, None where a user gave none.
        raw_train, raw_test: what the batches are made from.
        name: for the record.
        classes: their names; None for a user's own data, whose networks decide.
        validation: batches of what was held out of the training images; None where nothing was.
        raw_validation: what these are made from.
        labeled: whether the training images have labels that may be read.
        description: one line on what was read, and how it is fed; empty for a user's own data.
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
    """Collects mistakes, so that the user hears of all of them at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collect(self, field: str = "") -> Iterator[None]:
        """Note what goes wrong inside, under a field's name if it is of one field."""
        before = f"{field}: " if field else ""
        try:
            yield
        except RecipeError as error:
            self.messages += [f"{before}{problem}" for problem in error.problems]
        except CktfError as error:
            self.messages.append(f"{before}{error}")

    def mention(self, field: str) -> bool:
        """Whether something was found for a field or one inside it."""
        return any(problem.startswith((f"{field}:", f"{field}.")) for problem in self.messages)

    def raise_if_any(self) -> None:
        """Raise all that was found."""
        if self.messages:
            raise RecipeError(self.messages)


def check_recipe(recipe: Recipe) -> Problems:
    """Every mistake in a recipe that can be seen without reading images or weights."""
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
            for field in _NAMED_ONLY
            if getattr(recipe.data, field) != DataSection.model_fields[field].default
        ]
    network = recipe.model if isinstance(recipe, TrainRecipe) else recipe.student
    if network != CUSTOM:
        with problems.collect("model" if isinstance(recipe, TrainRecipe) else "student"):
            check_network(network)
    if not recipe.data.labels:
        problems.messages += _without_labels(recipe)
    if isinstance(recipe, DistillRecipe):
        problems.messages += _of_cache(recipe)
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


def _without_labels(recipe: Recipe) -> Iterator[str]:
    """What cannot be done with images that have no labels."""
    if isinstance(recipe, TrainRecipe):
        yield "data.labels: training without a teacher needs labels."
    else:
        named = term_names(recipe.method)
        for name in sorted(named & METHODS.keys()):
            if "labels" in METHODS[name].reads:
                yield f"method: {name} needs labels, and there are none. Leave it out."
        if named and all(n in METHODS and METHODS[n].objective.only_initializes for n in named):
            yield (
                f"method: {' and '.join(sorted(named))} only initialize the student, and without "
                "labels nothing is left to train it on. Add a method such as cktf."
            )
    for field in ("validation", "per_class"):
        if getattr(recipe.data, field):
            yield f"data.{field}: goes by labels, and there are none."


def _of_cache(recipe: DistillRecipe) -> Iterator[str]:
    """What a teacher cache cannot be of."""
    if recipe.teacher_cache is None:
        return
    if recipe.data.name == CUSTOM:
        yield (
            "teacher_cache: your own data set augments its images itself, so that no view comes "
            "again. Use a data set by name, or train without."
        )
    elif recipe.data.augment and not recipe.data.views:
        yield (
            "teacher_cache: new augmentations in every epoch have no end. Give a number of views: "
            "--teacher-cache views=8, or --set data.views=8."
        )


def _check_options(recipe: DistillRecipe, problems: Problems) -> None:
    named = parse(recipe.method)
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
                # YAML 1.1 reads 1e1 as a string: what validation makes of it is kept.
                values[option] = TypeAdapter(known[option].annotation).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                problems.messages.append(f"options.{name}.{option}: {message}, given {value!r}.")


def match_image_sizes(recipe: TransferRecipe) -> TransferRecipe:
    """A transfer whose labeled images are of the size of those without labels.

    That is, where no size is given.
    """
    data, labeled = recipe.data, recipe.labeled
    if CUSTOM in (data.name, labeled.name) or data.image_size or labeled.image_size:
        return recipe
    try:
        size, own = (
            open_dataset(section.name, _directory(section), split).size
            for section, split in ((data, UNLABELED_SPLIT), (labeled, "train"))
        )
    except DataError:
        # What is wrong with them is told where they are read.
        return recipe
    if size == own:
        return recipe
    return recipe.model_copy(update={"labeled": labeled.model_copy(update={"image_size": size})})


def _directory(section: DataSection) -> Path | None:
    return None if section.dir is None else Path(section.dir)


def _load(section: DataSection, *splits: str) -> list[ImageSet[Images]]:
    directory = _directory(section)
    reading = ReadOptions(
        section.image_size, section.channels, section.skip_broken, crops=section.resized_crops
    )
    if section.test in (None, section.name):
        loaded = load_splits(section.name, directory, splits, reading)
    else:
        reading = replace(reading, hold_out=False)
        if reading.image_size is None and "test" in splits:
            # Files may decide: those to test on come as those to train on.
            size = open_dataset(section.name, directory, "train", reading).size
            reading = replace(reading, image_size=size)
        names = {"test": section.test}
        loaded = [
            load_dataset(names.get(split) or section.name, directory, split, reading)
            for split in splits
        ]
        check_same_classes(loaded)
    return [data.select_classes(section.classes) if section.classes else data for data in loaded]


def check_same_classes(sets: Sequence[ImageSet[Images]]) -> None:
    """Training and test images from different data sets have the same classes.

    Raises:
        DataError: they have not.
    """
    for other in sets[1:]:
        if tuple(other.classes) != tuple(sets[0].classes):
            different = sorted(set(sets[0].classes) ^ set(other.classes)) or ["their order"]
            raise DataError(
                f"{sets[0].name} and {other.name} are trained and tested on and have the same "
                f"classes; different: {', '.join(different[:5])}. Name another --test."
            )


def load_split(section: DataSection, split: str) -> ImageSet[Images]:
    """All of one split of a named data set, and none of its others.

    Raises:
        DataError: files that are missing or damaged.
    """
    (data,) = _load(section, split)
    return data


def build_data(section: DataSection, seed: int) -> Data:
    """A named data set, in memory or read from disk batch by batch.

    Raises:
        DataError: files that are missing or damaged.
    """
    if not section.labels:
        return _unlabeled(section, seed)
    train, test = _load(section, "train", "test")
    if section.per_class is not None:
        train = train.subset(sample_per_class(train.labels, section.per_class, seed))
    held = None
    if section.validation:
        kept, out = split_validation(train.labels, section.validation, VALIDATION_SEED)
        train, held = train.subset(kept), replace(train.subset(out), note="")
    named = {"train": train, "validation": held, "test": test}
    found = [f"{split}: {data.describe()}" for split, data in named.items() if data is not None]
    found += _slowly(train, section)
    return Data(
        train=build_train_loader(train, section, seed),
        test=build_test_loader(test, section.workers),
        raw_train=train,
        raw_test=test,
        name=section.name,
        classes=tuple(train.classes),
        validation=None if held is None else build_test_loader(held, section.workers),
        raw_validation=held,
        description=f"{section.name}: {' | '.join(found)}",
    )


def _unlabeled(section: DataSection, seed: int) -> Data:
    """Training images without labels: of a split of such images, or of the training images."""
    # Classes are chosen by labels, which are then forgotten.
    train = load_split(section, "train" if section.classes else UNLABELED_SPLIT).without_labels()
    return Data(
        train=build_train_loader(train, section, seed),
        test=None,
        raw_train=train,
        raw_test=None,
        name=section.name,
        classes=None,
        labeled=False,
        description=f"{section.name}: {' | '.join([train.describe(), *_slowly(train, section)])}",
    )


def _slowly(train: ImageSet[Images], section: DataSection) -> list[str]:
    if isinstance(train.images, StreamedImages) and not section.workers:
        return ["one process reads them: more do with --set data.workers=8"]
    return []


def build_train_loader(train: Any, section: DataSection, seed: int) -> Loader:
    """Training batches of a named data set, or of a user's own, which augments itself."""
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
    """All of a test set, in order."""
    if not isinstance(test, ImageSet):
        size = _test_batch(_pixels_of_first(test, workers))
        return DatasetLoader(test, size, train=False, workers=workers)
    _, height, width, _ = test.images.shape
    size = _test_batch(height * width)
    if isinstance(test.images, StreamedImages):
        return DatasetLoader(test, size, train=False, workers=workers)
    return MemoryLoader(test, size, train=False)


def _test_batch(pixels: int) -> int:
    """How many images of so many pixels are in a batch without gradients."""
    return max(1, min(_TEST_BATCH, _TEST_PIXELS // max(1, pixels)))


def _pixels_of_first(data: Any, workers: int) -> int:
    """Of the first image of a user's own data set; 0 where it is none, which is told later."""
    first = Subset(data, range(min(1, len(data))))
    # A data set that other processes read is not opened in this one before they are made.
    loader = DatasetLoader(first, 1, train=False, workers=min(workers, 1), labeled=False)
    with suppress(DataError), preserve_rng(torch.device("cpu")):
        for batch in loader.epoch(0):
            return batch.images.shape[2] * batch.images.shape[3]
    return 0


def check_batches(samples: int, batch_size: int) -> None:
    """An epoch has at least one whole batch."""
    if samples < batch_size:
        raise DataError(
            f"The training set has {samples} images, fewer than one batch of {batch_size}. Use "
            "--set data.batch_size=… of at most that."
        )
