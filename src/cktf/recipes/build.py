"""From names to objects: the only place where a recipe becomes networks and data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from cktf.data import DatasetLoader, ImageSet, Loader, MemoryLoader, dataset_info, load_dataset
from cktf.errors import CktfError, DataError, RecipeError, nearest
from cktf.models import parse_source
from cktf.objectives import METHODS, parse
from cktf.recipes.networks import check_teacher
from cktf.recipes.schema import CUSTOM, DataSection, DistillRecipe, Recipe, TrainRecipe

_TEST_BATCH = 500


@dataclass(frozen=True)
class Data:
    """The images of a run, ready to be fed.

    Attributes:
        train: training batches.
        test: test batches, None where a user gave none.
        raw_train, raw_test: what the batches are made from.
        name: for the record.
        classes: their names; None for a user's own data, whose networks decide.
    """

    train: Loader
    test: Loader | None
    raw_train: Any
    raw_test: Any
    name: str
    classes: tuple[str, ...] | None


class Problems:
    """Collects mistakes, so that the user hears of all of them at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def collect(self, field: str) -> Iterator[None]:
        """Note what goes wrong inside, under a field's name."""
        try:
            yield
        except RecipeError as error:
            self.found += [f"{field}: {problem}" for problem in error.problems]
        except CktfError as error:
            self.found.append(f"{field}: {error}")

    def about(self, field: str) -> bool:
        """Whether something was found for a field or one inside it."""
        return any(problem.startswith((f"{field}:", f"{field}.")) for problem in self.found)

    def stop_if_any(self) -> None:
        """Raise all that was found."""
        if self.found:
            raise RecipeError(self.found)


def check(recipe: Recipe) -> Problems:
    """Every mistake in a recipe that can be seen without reading images or weights."""
    problems = Problems()
    if recipe.data.name != CUSTOM:
        with problems.collect("data.name"):
            info = dataset_info(recipe.data.name)
            if info.needs_directory and recipe.data.dir is None:
                problems.found.append(
                    f"data.dir: {recipe.data.name} needs a folder: --data-dir DIR."
                )
    network = recipe.model if isinstance(recipe, TrainRecipe) else recipe.student
    if network != CUSTOM:
        with problems.collect("model" if isinstance(recipe, TrainRecipe) else "student"):
            parse_source(network)
    if isinstance(recipe, DistillRecipe):
        with problems.collect("method"):
            _check_options(recipe, problems)
        if recipe.teacher != CUSTOM:
            with problems.collect("teacher"):
                check_teacher(recipe.teacher, recipe.teacher_weights)
    if recipe.runtime.device == "cuda" and not torch.cuda.is_available():
        problems.found.append("runtime.device: PyTorch sees no 'cuda' here. Use cpu or auto.")
    return problems


def _check_options(recipe: DistillRecipe, problems: Problems) -> None:
    named = parse(recipe.method)
    for name, values in recipe.options.items():
        if name not in named:
            problems.found.append(
                f"options.{name}: the method {recipe.method!r} does not name it. "
                f"{nearest(name, named)}"
            )
            continue
        known = METHODS[name].options()
        for option, value in values.items():
            if option not in known:
                problems.found.append(
                    f"options.{name}.{option}: {name} has no such option. {nearest(option, known)}"
                )
                continue
            try:
                # YAML 1.1 reads 1e1 as a string: what validation makes of it is kept.
                values[option] = TypeAdapter(known[option].annotation).validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                problems.found.append(f"options.{name}.{option}: {message}, given {value!r}.")


def _load(section: DataSection, split: str) -> ImageSet:
    directory = None if section.dir is None else Path(section.dir).expanduser()
    return load_dataset(section.name, directory, split)


def build_test(section: DataSection) -> tuple[Loader, tuple[str, ...]]:
    """The test images of a named data set, and its classes.

    Raises:
        DataError: files that are missing or damaged.
    """
    test = _load(section, "test")
    return loader_of_test(test), tuple(test.classes)


def build_data(section: DataSection, seed: int) -> Data:
    """A named data set in memory.

    Raises:
        DataError: files that are missing or damaged.
    """
    train, test = _load(section, "train"), _load(section, "test")
    return Data(
        train=memory_loader(train, section, seed),
        test=loader_of_test(test),
        raw_train=train,
        raw_test=test,
        name=section.name,
        classes=tuple(train.classes),
    )


def memory_loader(train: ImageSet, section: DataSection, seed: int) -> MemoryLoader:
    """Training batches of images in memory."""
    check_batches(len(train), section.batch_size)
    return MemoryLoader(train, section.batch_size, train=True, augment=section.augment, seed=seed)


def custom_loader(train: Any, section: DataSection, seed: int) -> Loader:
    """Training batches of a user's own data set."""
    if isinstance(train, ImageSet):
        return memory_loader(train, section, seed)
    check_batches(len(train), section.batch_size)
    return DatasetLoader(
        train,
        section.batch_size,
        train=True,
        workers=section.workers,
        seed=seed,
    )


def loader_of_test(test: Any, workers: int = 0) -> Loader:
    """All of a test set, in order."""
    if isinstance(test, ImageSet):
        return MemoryLoader(test, _TEST_BATCH, train=False)
    return DatasetLoader(test, _TEST_BATCH, train=False, workers=workers)


def check_batches(samples: int, batch_size: int) -> None:
    """An epoch has at least one whole batch."""
    if samples < batch_size:
        raise DataError(
            f"The training set has {samples} images, fewer than one batch of {batch_size}. Use "
            "--set data.batch_size=… of at most that."
        )
