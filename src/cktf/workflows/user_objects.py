"""Objects made in Python, where a recipe says `custom`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from cktf.data import (
    VALIDATION_SEED,
    DatasetLoader,
    ImageSet,
    MemoryLoader,
    get_labels,
    split_validation,
)
from cktf.recipes import (
    CUSTOM,
    Data,
    DataSection,
    DistillRecipe,
    Recipe,
    build_data,
    build_test_loader,
    build_train_loader,
)


@dataclass(frozen=True)
class UserObjects:
    """What stands in for the names in a recipe: only what is not a name counts."""

    teacher: nn.Module | str | Path | None = None
    student: nn.Module | str | None = None
    train: Any = None
    test: Any = None


def check_objects(recipe: Recipe, objects: UserObjects) -> list[str]:
    """Where the recipe says `custom` and no object was given, or one that does not fit."""
    if isinstance(recipe, DistillRecipe):
        said = {"teacher": recipe.teacher, "student": recipe.student}
    else:
        said = {"student": recipe.model}
    return [
        *(_missing(n) for n, value in said.items() if _is_missing(value, getattr(objects, n))),
        *check_data_objects(recipe.data, objects),
    ]


def check_data_objects(section: DataSection, objects: UserObjects) -> list[str]:
    """Likewise of the images."""
    custom = section.name == CUSTOM
    problems = [_missing("train")] if _is_missing(section.name, objects.train) else []
    if not custom and not isinstance(objects.train, str | Path | None):
        problems.append(
            f"train: a data set was given, and the recipe names {section.name}. Leave one away."
        )
    if not custom and objects.test is not None:
        problems.append(f"test: {section.name} brings its own test images. Leave test away.")
    for name in ("train", "test"):
        value = getattr(objects, name)
        if custom and value is not None and not isinstance(value, str):
            called = name if section.labels or name == "test" else "unlabeled"
            problems += check_map_style(called, value)
    if objects.test is not None and not section.labels:
        problems.append(
            "test: without labels the student does not learn to tell classes. Measure its features "
            "with cktf.probe."
        )
    if isinstance(objects.test, str) and custom:
        problems.append("test: give a data set, as for train, not the name of one.")
    return problems


def check_map_style(name: str, value: Any) -> list[str]:
    """What keeps an object from being read as a data set, sample by sample in any order."""
    kind = type(value).__name__
    if isinstance(value, DataLoader | DatasetLoader | MemoryLoader):
        return [
            f"{name}: give the data set, not a loader of it; given {kind}. It is shuffled and "
            "batched here: see data.batch_size and data.workers."
        ]
    rule = f"{name}: a map-style data set has a length above 0, and samples by their position"
    if isinstance(value, IterableDataset):
        return [f"{rule}; given {kind}, which only goes from one to the next. Read it into a list."]
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__") and len(value) > 0
    return [] if sized else [f"{rule}; given {kind}."]


def _is_missing(said: str, value: Any) -> bool:
    return said == CUSTOM and isinstance(value, str | Path | None)


def _missing(name: str) -> str:
    return (
        f"{name}: the recipe says {CUSTOM!r}, an object made in Python. Pass it to cktf.distill or "
        "cktf.teach, or name another."
    )


def load_data(section: DataSection, seed: int, objects: UserObjects) -> Data:
    """The images that a recipe names, or the objects that stand in for them."""
    train, test = objects.train, objects.test
    if section.name != CUSTOM:
        return build_data(section, seed)
    if isinstance(train, ImageSet) and not section.labels:
        train = train.without_labels()
    named = isinstance(train, ImageSet) and train.labeled
    held = None
    if section.validation:
        kept, out = split_validation(get_labels(train), section.validation, VALIDATION_SEED)
        train, held = select_samples(train, kept), select_samples(train, out)
    return Data(
        train=build_train_loader(train, section, seed),
        test=None if test is None else build_test_loader(test, section.workers),
        raw_train=train,
        raw_test=test,
        name=train.name if isinstance(train, ImageSet) else CUSTOM,
        classes=tuple(train.classes) if named else None,
        labeled=section.labels,
        validation=None if held is None else build_test_loader(held, section.workers),
        raw_validation=held,
    )


def select_samples(data: Any, positions: Tensor) -> Any:
    """The samples of a data set at some positions."""
    if isinstance(data, ImageSet):
        return data.subset(positions)
    return Subset(data, positions.tolist())
