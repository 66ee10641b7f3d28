"""From objects to a finished run folder: what teaching and distilling have in common."""

import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from cktf.data import labels_of
from cktf.engine import Accuracy, Fitted, RunFolder, Trainer, write_atomically
from cktf.errors import DataError, RunFolderError
from cktf.models import save_network
from cktf.objectives import Setting, WeightedSum, compose, features_read
from cktf.recipes import CUSTOM, Data, DistillRecipe, Recipe, to_yaml
from cktf.taps import FeaturePaths, Features, Tap, infer_paths

_EXAMPLES = 8


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything is.
        student: the trained network: the module that was given, or one that takes images in [0, 1].
        summary: what summary.json holds.
    """

    folder: Path
    student: nn.Module
    summary: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The objects of a run.

    Attributes:
        student: the network to be trained.
        teacher: the frozen network; None to train on labels alone.
        student_name, teacher_name: for the record.
        data: its images.
    """

    student: nn.Module
    teacher: nn.Module | None
    student_name: str
    teacher_name: str | None
    data: Data


def execute(recipe: Recipe, parts: Parts, run: RunFolder, show: bool = True) -> Run:
    """Train, record and save; nothing is written before all is known to fit.

    Raises:
        CktfError: networks, data and method do not fit; nothing was trained then.
    """
    training = recipe.training()
    method = recipe.method if isinstance(recipe, DistillRecipe) else "ce"
    options = recipe.options if isinstance(recipe, DistillRecipe) else {}
    set_seed(training.seed)
    example = _example(parts)
    num_classes = _num_classes(parts, example)
    student, teacher, objective = _objective(parts, example, method, options, num_classes)
    run.create()
    write_atomically(run.recipe, to_yaml(recipe).encode())
    title = f"{parts.student_name} {method}" if parts.teacher else parts.student_name
    data = parts.data
    trainer = Trainer(
        student, teacher, objective, data.train, data.test, num_classes, training, run, title, show
    )
    teacher_accuracy = None
    if parts.teacher is not None and data.test is not None:
        teacher_accuracy = trainer.evaluate(parts.teacher, data.test)
    fitted = trainer.fit()
    classes = data.classes or tuple(f"class {c}" for c in range(num_classes))
    save_network(
        parts.student, run.weights, name=parts.student_name, classes=classes, dataset=data.name
    )
    summary = _summary(recipe, method, parts, fitted, teacher_accuracy, trainer.device)
    run.write_summary(summary)
    return Run(run.path, parts.student, summary)


def _example(parts: Parts) -> Tensor:
    batch = next(iter(parts.data.train.epoch(1)))
    return batch.images[:_EXAMPLES]


def _num_classes(parts: Parts, example: Tensor) -> int:
    """Classes of the student, after making sure that the labels fit it."""
    features = _try(parts.student, example, "student", parts.student_name)
    student = int(features.logits.shape[1])
    labels = labels_of(parts.data.raw_train)
    if not 0 <= int(labels.min()) <= int(labels.max()) < student:
        raise DataError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, and the student has "
            f"{student} classes: a label is from 0 to {student - 1}. Give the student as many "
            "outputs as the data has classes."
        )
    return student


def _try(network: nn.Module, example: Tensor, role: str, name: str) -> Features:
    """Features of one forward pass, or a message that says which network cannot take the images."""
    was_training = network.training
    parameter = next(network.parameters(), None)
    images = example if parameter is None else example.to(parameter.device)
    try:
        with torch.no_grad():
            return Tap(network.eval(), FeaturePaths(), needs=())(images)
    except (RuntimeError, ValueError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"The {role} {name} cannot take images {tuple(example.shape)}: {first}. Check channels "
            "and size, or give another network."
        ) from error
    finally:
        network.train(was_training)


def _objective(
    parts: Parts, example: Tensor, method: str, options: dict[str, Any], num_classes: int
) -> tuple[Tap, Tap | None, WeightedSum]:
    """The taps and the objective between them, sized by a dry forward pass."""
    reads = features_read(method)
    paths = _paths(parts.student, example, reads)
    teacher_paths, teacher_features = None, None
    if parts.teacher is not None:
        _try(parts.teacher, example, "teacher", parts.teacher_name or CUSTOM)
        teacher_paths = _paths(parts.teacher, example, reads)
        teacher_features = _features(parts.teacher, teacher_paths, reads, example)
    setting = Setting(
        student=_features(parts.student, paths, reads, example),
        teacher=teacher_features,
        dataset_size=parts.data.train.samples,
        labels=labels_of(parts.data.raw_train),
    )
    objective = compose(method, setting, options)
    student = Tap(parts.student, paths, objective.needs)
    if parts.teacher is None or not objective.needs_teacher:
        return student, None, objective
    return student, Tap(parts.teacher, teacher_paths, objective.needs), objective


def _paths(network: nn.Module, example: Tensor, reads: set[str]) -> FeaturePaths:
    known: FeaturePaths | None = getattr(network, "feature_paths", None)
    if known is not None:
        return known
    return infer_paths(network, example) if reads > {"logits"} else FeaturePaths()


def _features(
    network: nn.Module, paths: FeaturePaths, reads: set[str], example: Tensor
) -> Features:
    there = {name for name in reads - {"logits"} if getattr(paths, name)}
    was_training = network.training
    with torch.no_grad():
        features = Tap(network.eval(), paths, there)(example)
    network.train(was_training)
    return features


def _summary(
    recipe: Recipe,
    method: str,
    parts: Parts,
    fitted: Fitted,
    teacher: Accuracy | None,
    device: torch.device,
) -> dict[str, Any]:
    student_parameters = _count(parts.student)
    teacher_parameters = None if parts.teacher is None else _count(parts.teacher)
    last = fitted.last
    return {
        "method": method,
        "teacher": parts.teacher_name,
        "student": parts.student_name,
        "dataset": parts.data.name,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "test_top1": None if last is None else last.top1,
        "test_top5": None if last is None else last.top5,
        "test_standard_error": None if last is None else last.standard_error,
        "test_images": None if last is None else last.samples,
        "best_top1": fitted.best_top1,
        "best_top1_chosen_on": "test",
        "teacher_top1": None if teacher is None else teacher.top1,
        "student_parameters": student_parameters,
        "teacher_parameters": teacher_parameters,
        "compression_ratio": teacher_parameters and teacher_parameters / student_parameters,
        "images_per_second": fitted.images_per_second,
        "seconds": fitted.seconds,
        "peak_memory_mb": fitted.peak_memory_mb,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("cktf", "torch", "accelerate")},
        },
        "device": _describe(device),
    }


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def read_summary(folder: Path) -> dict[str, Any]:
    """What a run folder's summary.json holds.

    Raises:
        RunFolderError: no finished run there.
    """
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{folder} holds no finished run: no summary.json to read.") from error
    return summary
