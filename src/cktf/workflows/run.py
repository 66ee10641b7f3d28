"""From objects to a finished run folder: what teaching and distilling have in common."""

import json
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cktf.engine import (
    Accuracy,
    RunFolder,
    Trainer,
    TrainResult,
    announce,
    autocast_dtype,
    device_of,
    enough_memory,
    environment,
    to_device,
    tracked,
)
from cktf.files import write_atomically
from cktf.models import Normalized, load_weights, save_network
from cktf.recipes import (
    CUSTOM,
    Recipe,
    numbered_class_names,
    recipe_hash,
    result_fields,
    to_yaml,
    with_absolute_paths,
)
from cktf.taps import (
    CachedTap,
    preserve_modes,
)
from cktf.workflows.assembly import Assembly, assemble
from cktf.workflows.components import RunComponents
from cktf.workflows.input_fingerprint import check_input_fingerprint, write_input_fingerprint
from cktf.workflows.teacher_ref import with_original_teacher


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


def execute(recipe: Recipe, parts: RunComponents, run: RunFolder, show: bool = True) -> Run:
    """Train, record and save; nothing is written before all is known to fit.

    The teacher is frozen and in eval mode meanwhile, and then as it was.

    Raises:
        CktfError: networks, data and method do not fit; nothing was trained then.
    """
    steps = executing(recipe, parts, run, show)
    with preserve_modes(parts.teacher):
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


def executing(
    recipe: Recipe, parts: RunComponents, run: RunFolder, show: bool = True
) -> Generator[None, None, Run]:
    """What `execute` does, stopping before the first step and after every one."""
    check_input_fingerprint(recipe, parts, run)
    if run.finished:
        return _read(run, parts.student)
    fitting, data = assemble(recipe, parts), parts.data
    device = device_of(recipe.training())
    fitting.objective.footprint(data.train.batch_size).check(device, built=True)
    for stage in fitting.stages:
        if isinstance(stage.teacher, CachedTap):
            stage.teacher.say = partial(_tell, run, show)
    run.create(_checkpoint_mb(parts.student, fitting.objective))
    with run.locked(), tracked(run, recipe.runtime.track, result_fields(recipe)):
        return (yield from _train(recipe, parts, fitting, run, show))


def _train(
    recipe: Recipe, parts: RunComponents, fitting: Assembly, run: RunFolder, show: bool
) -> Generator[None, None, Run]:
    """From networks, data and objective that fit to what a finished run holds."""
    data = parts.data
    run.insist(
        lambda: write_atomically(run.recipe, to_yaml(with_absolute_paths(recipe)).encode()),
        "its recipe",
    )
    write_input_fingerprint(recipe, parts, run)
    with enough_memory(data.train.batch_size, device_of(recipe.training()), training=True):
        trainer = Trainer(
            parts.student,
            fitting.stages,
            data.train,
            data.test,
            fitting.num_classes,
            recipe.training(),
            run,
            title=f"{parts.student_name} {fitting.method}" if parts.teacher else parts.student_name,
            show=show,
            identity=recipe_hash(with_original_teacher(recipe, run)),
            validation=data.validation,
        )
    for line in [data.description, *fitting.advice]:
        if line:
            _tell(run, show, line)
    if parts.began:
        _tell(run, show, f"student: {parts.began}")
    teacher_accuracy = None
    if parts.teacher is not None and data.test is not None and fitting.same_classes:
        to_device(parts.teacher, recipe.training(), trainer.device)
        if "teacher" not in parts.measured:
            with enough_memory(data.test.batch_size, trainer.device):
                parts.measured["teacher"] = trainer.evaluate(parts.teacher, data.test)
        teacher_accuracy = parts.measured["teacher"]
    if parts.note or teacher_accuracy is not None:
        measured = "" if teacher_accuracy is None else f": top-1 {teacher_accuracy.top1:.2f} %"
        _tell(run, show, f"teacher: {parts.note or parts.teacher_name}{measured}")
    yield
    yield from trainer.steps()
    fitted = trainer.result()
    parts.student.eval()
    name, (classes, of) = parts.student_name, _told(parts, fitting.num_classes)
    run.insist(
        lambda: save_network(
            parts.student,
            run.weights,
            name=name,
            classes=classes,
            dataset=of,
            images=fitting.images,
        ),
        "the student",
    )
    summary = _summary(recipe, fitting, parts, fitted, teacher_accuracy, trainer.device)
    run.insist(lambda: run.write_summary(summary), "the summary")
    return Run(run.path, parts.student, summary)


def _told(parts: RunComponents, count: int) -> tuple[tuple[str, ...], str]:
    """Names of the classes that the student tells, and the data set that they are of."""
    if parts.data.classes is not None:
        return parts.data.classes, parts.data.name
    if not parts.data.labeled and parts.classes is not None and len(parts.classes) == count:
        # It learned to tell its teacher's.
        return parts.classes, parts.data.name
    # Numbers are no names: no data set is refused for them.
    return numbered_class_names(count), CUSTOM


def _tell(run: RunFolder, show: bool, line: str) -> None:
    run.log(line)
    announce(line, show)


def _read(run: RunFolder, student: nn.Module) -> Run:
    """A run that is finished already, with its weights in the student."""
    load_weights(student.network if isinstance(student, Normalized) else student, run.weights)
    return Run(run.path, student.eval(), json.loads(run.summary.read_text()))


def _checkpoint_mb(student: nn.Module, objective: nn.Module) -> float:
    """Size of a checkpoint: weights, their momentum, and what the objective keeps."""
    trained = [*student.parameters(), *objective.parameters()]
    kept = [*trained, *trained, *student.buffers(), *objective.buffers()]
    return sum(t.numel() * t.element_size() for t in kept) / 2**20


def _summary(
    recipe: Recipe,
    fitting: Assembly,
    parts: RunComponents,
    fitted: TrainResult,
    teacher: Accuracy | None,
    device: torch.device,
) -> dict[str, Any]:
    student_parameters = _count(parts.student)
    teacher_parameters = None if parts.teacher is None else _count(parts.teacher)
    last, chosen = fitted.last, fitted.chosen
    return {
        "method": fitting.method,
        "teacher": parts.teacher_name,
        "student": parts.student_name,
        "dataset": parts.data.name,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "init_epochs": {stage.name: stage.epochs for stage in fitting.stages[:-1]},
        "test_top1": None if last is None else last.top1,
        "test_top5": None if last is None else last.top5,
        "test_standard_error": None if last is None else last.standard_error,
        "test_images": None if last is None else last.samples,
        "best_top1": fitted.best_top1,
        "best_top1_chosen_on": "test",
        "kept_epoch": recipe.epochs if chosen is None else chosen["epoch"],
        "kept_test_top1": fitted.kept_top1,
        "validation_top1": None if chosen is None else chosen["validation_top1"],
        "teacher_top1": None if teacher is None else teacher.top1,
        "student_parameters": student_parameters,
        "teacher_parameters": teacher_parameters,
        "compression_ratio": teacher_parameters and teacher_parameters / student_parameters,
        "images_per_second": fitted.images_per_second,
        "seconds": fitted.seconds,
        "interleaved": parts.shared is not None and getattr(recipe, "teacher_cache", None) is None,
        "peak_memory_mb": fitted.peak_memory_mb,
        "skipped_steps": fitted.skipped,
        **environment(device, autocast_dtype(recipe.runtime.precision, device) or torch.float32),
    }


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
