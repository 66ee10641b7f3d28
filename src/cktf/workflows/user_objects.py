"""Objects made in Python for the fields of a recipe that are `custom`."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from cktf.data import DatasetLoader, ImageSet, MemoryLoader
from cktf.recipes import (
    CUSTOM,
    Data,
    DataConfig,
    DistillRecipe,
    Recipe,
    build_data,
    with_loaders,
)
from cktf.user_paths import expand_user_path


@dataclass(frozen=True)
class UserObjects:
    """Objects passed from Python for fields set to `custom`; strings and paths are ignored."""

    teacher: nn.Module | str | Path | None = None
    student: nn.Module | str | None = None
    train: Any = None
    test: Any = None


def dataset_name(data: Any) -> str:
    """How a recipe names a data set: by its name or its folder, or as an object made in Python."""
    if isinstance(data, Path):
        # An absolute path is never read as the name of a data set.
        return str(expand_user_path(data).absolute())
    return data if isinstance(data, str) else CUSTOM


def check_objects(recipe: Recipe, objects: UserObjects) -> list[str]:
    """List the fields set to `custom` without an object, and objects that do not fit."""
    problems = check_data_objects(recipe.data, objects)
    problems += _find_network_problems("teacher", objects.teacher)
    problems += _find_network_problems("student", objects.student)
    if isinstance(recipe, DistillRecipe):
        problems += _explain_missing_object("teacher", recipe.teacher, objects.teacher)
    student = recipe.student if isinstance(recipe, DistillRecipe) else recipe.model
    return [*problems, *_explain_missing_object("student", student, objects.student)]


def check_data_objects(section: DataConfig, objects: UserObjects) -> list[str]:
    """List the problems with the data sets of a user."""
    problems = _explain_missing_object("train", section.name, objects.train)
    if section.name != CUSTOM:
        if not isinstance(objects.train, str | Path | None):
            problems.append(
                f"train: a data set was given, and the recipe names {section.name}. Leave one out."
            )
        if objects.test is not None:
            problems.append(f"test: {section.name} has its own test images. Leave out test.")
    else:
        if objects.train is not None and not isinstance(objects.train, str | Path):
            argument = "train" if section.labels else "unlabeled"
            problems += find_map_style_problems(argument, objects.train)
        if isinstance(objects.test, str):
            problems.append("test: give a data set, as for train, not the name of one.")
        elif objects.test is not None:
            problems += find_map_style_problems("test", objects.test)
    if objects.test is not None and not section.labels:
        problems.append(
            "test: a student trained without labels is not tested on classes. Measure its "
            "features with cktf.probe."
        )
    return problems


def _explain_missing_object(name: str, spec: str, value: Any) -> list[str]:
    """List a field that is `custom` and has no object."""
    if spec != CUSTOM or not isinstance(value, str | Path | None):
        return []
    return [
        f"{name}: the recipe says {CUSTOM!r}, an object made in Python. Pass it to cktf.distill or "
        "cktf.teach, or name another."
    ]


def _find_network_problems(name: str, value: Any) -> list[str]:
    """List what keeps an object from being a network."""
    if isinstance(value, nn.Module | str | Path | None):
        return []
    kind = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
    advice = "Wrap what it computes in one"
    if isinstance(value, type):
        advice = f"Make one: {value.__name__}(...)"
    elif isinstance(value, torch.export.ExportedProgram):
        advice = "Give the Python module that the program was exported from"
    elif isinstance(getattr(value, "student", None), nn.Module):
        advice = "Give its .student, or its .folder"
    return [f"{name}: a network is a torch.nn.Module; given {kind}. {advice}."]


def find_map_style_problems(argument: str, data: Any) -> list[str]:
    """List what keeps an object from being read as a map-style data set."""
    kind = type(data).__name__
    if isinstance(data, DataLoader | DatasetLoader | MemoryLoader):
        return [
            f"{argument}: give the data set, not a loader of it; given {kind}. It is shuffled and "
            "batched here: see data.batch_size and data.workers."
        ]
    rule = f"{argument}: a map-style data set has a length above 0, and samples by their position"
    if isinstance(data, IterableDataset):
        return [f"{rule}; given {kind}, which only iterates. Read it into a list."]
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, data))
        return [f"{rule}; given {kind} with the keys {keys}. Give one of its values."]
    if isinstance(data, tuple | list) and len(data) == 2 and getattr(data[0], "ndim", 0) == 4:
        return [
            f"{rule}; given images and labels apart. Put them together: "
            "torch.utils.data.TensorDataset(images, labels), of two tensors."
        ]
    with suppress(Exception):  # a user's code raises errors of any type
        if hasattr(data, "__getitem__") and len(data) > 0:
            return []
    return [f"{rule}; given {kind}."]


def load_data(section: DataConfig, seed: int, objects: UserObjects) -> Data:
    """Load the images that a recipe names, or wrap the user's data sets."""
    if section.name != CUSTOM:
        return build_data(section, seed)
    train = objects.train
    if isinstance(train, ImageSet) and not section.labels:
        train = train.without_labels()
    return with_loaders(train, objects.test, section, seed)
