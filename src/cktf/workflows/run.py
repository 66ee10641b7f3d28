"""Carry out a run: from its components to a finished run folder."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from cktf.engine import (
    Accuracy,
    Callback,
    RunFolder,
    Trackers,
    Trainer,
    TrainResult,
    announce,
    default_tensors,
    environment,
    explain_out_of_memory,
)
from cktf.errors import CheckpointError, add_arguments
from cktf.files import write_atomically
from cktf.models import Normalized, load_weights, save_network
from cktf.objectives import term_names
from cktf.recipes import (
    CUSTOM,
    DistillRecipe,
    Recipe,
    find_recipe,
    numbered_class_names,
    read_recipe,
    recipe_hash,
    result_fields,
    to_yaml,
    with_absolute_paths,
)
from cktf.taps import CachedTap, preserve_modes
from cktf.user_paths import expand_user_path
from cktf.workflows.components import RunComponents
from cktf.workflows.epoch_warnings import EpochWarnings
from cktf.workflows.input_fingerprint import check_input_fingerprint, write_input_fingerprint
from cktf.workflows.longer_run import describe_change_of_epochs, earlier_identities
from cktf.workflows.objective_setup import ObjectiveSetup, set_up_objective
from cktf.workflows.run_warnings import warn_of_teacher
from cktf.workflows.teacher_ref import with_original_teacher


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run folder.
        student: the trained network: the user's module, or one that takes images in [0, 1].
        summary: contents of summary.json.
    """

    folder: Path
    student: nn.Module
    summary: dict[str, Any]

    def __post_init__(self) -> None:
        """Note the run, so that its folder can name a student that was made in Python."""
        _session_runs[self.folder.resolve()] = self

    def __repr__(self) -> str:
        name, top1 = self.summary.get("student"), self.summary.get("test_top1")
        return f"Run(folder={str(self.folder)!r}, student={name!r}, test_top1={top1})"


_session_runs: WeakValueDictionary[Path, Run] = WeakValueDictionary()


def find_session_student(teacher: object) -> nn.Module | None:
    """Return the student of a run of this Python session, if no name and no file builds it.

    Args:
        teacher: a `Run`, its folder, or anything else.
    """
    if isinstance(teacher, str | Path):
        teacher = _session_runs.get(expand_user_path(teacher).resolve())
    if not isinstance(teacher, Run):
        return None
    recipe = read_recipe(find_recipe(teacher.folder))
    made_in_python = CUSTOM in (recipe.get("model"), recipe.get("student"))
    return teacher.student if made_in_python else None


@dataclass(frozen=True)
class StartedRun:
    """A run that is ready to train.

    Attributes:
        teacher_accuracy: None where it cannot be measured.
        warnings: found before training.
        epoch_warnings: finds those of training.
    """

    recipe: Recipe
    components: RunComponents
    folder: RunFolder
    setup: ObjectiveSetup
    trainer: Trainer
    teacher_accuracy: Accuracy | None
    warnings: list[str]
    epoch_warnings: EpochWarnings


@default_tensors()
@torch.inference_mode(False)
def execute(
    recipe: Recipe,
    components: RunComponents,
    folder: RunFolder,
    show: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train, record and save; a finished run is read instead.

    Nothing is written before networks, data and method are known to fit. During the run the teacher
    is frozen and in eval mode; afterwards it is as before.

    Raises:
        CktfError: networks, data and method do not fit; nothing was trained.
    """
    with preserve_modes(components.teacher):
        check_input_fingerprint(recipe, components, folder)
        if folder.finished and not describe_change_of_epochs(recipe, folder):
            run = read_finished(components, folder)
            for line in run.summary.get("warnings", []):
                announce(f"Warning: {line}", show)
            return run
        with start_run(recipe, components, folder, show, callbacks) as started:
            return finish_run(started, started.trainer.fit())


@contextmanager
def start_run(
    recipe: Recipe,
    components: RunComponents,
    folder: RunFolder,
    show: bool,
    callbacks: Sequence[Callback] = (),
) -> Iterator[StartedRun]:
    """Assemble a run, lock its folder, write its recipe and build its trainer.

    After a CktfError, where networks, data and method do not fit, nothing was written.
    """
    # A data set may change the working folder.
    recipe = with_absolute_paths(recipe)
    setup, data, runtime = set_up_objective(recipe, components), components.data, components.runtime
    _refuse_changed_weights(recipe, folder)
    setup.warnings.extend(describe_change_of_epochs(recipe, folder))

    def tell(line: str) -> None:
        folder.log(line)
        announce(line, show)

    for phase in setup.phases:
        if isinstance(phase.step.teacher_tap, CachedTap):
            phase.step.teacher_tap.say = tell
    # A checkpoint holds weights, their momentum, and the objective's memories.
    modules = components.student, setup.objective
    trained = [parameter for module in modules for parameter in module.parameters()]
    buffers = [buffer for module in modules for buffer in module.buffers()]
    tensors = [*trained, *trained, *buffers]
    folder.create(sum(t.numel() * t.element_size() for t in tensors) / 2**20)
    with folder.locked():
        # A run that is continued with more epochs is no longer finished.
        folder.summary.unlink(missing_ok=True)
        _write_recipe(folder, recipe)
        write_input_fingerprint(recipe, components, folder)
        name = components.student_name
        identified = with_original_teacher(recipe, folder)
        with explain_out_of_memory(data.train.batch_size, runtime.device, training=True):
            trainer = Trainer(
                setup.phases,
                data.train,
                data.test,
                setup.num_classes,
                recipe,
                folder,
                runtime,
                title=f"{name} {setup.method}" if components.teacher else name,
                show=show,
                identity=recipe_hash(identified),
                earlier_identities=earlier_identities(identified),
                validation=data.validation,
                callbacks=[Trackers(recipe.runtime.track, result_fields(recipe)), *callbacks],
            )
        if data.description:
            tell(data.description)
        if components.student_origin:
            tell(f"student: {components.student_origin}")
        accuracy = _teacher_accuracy(components, setup, trainer)
        if components.teacher_origin or accuracy is not None:
            top1 = "" if accuracy is None else f": top-1 {accuracy.top1:.2f} %"
            tell(f"teacher: {components.teacher_origin or components.teacher_name}{top1}")
        warnings = list(map(add_arguments, setup.warnings))
        # The rehearsal may have said so of its batch.
        if accuracy is not None and not any("as by guessing" in line for line in warnings):
            assert components.teacher is not None
            shape = setup.images.shape
            if line := warn_of_teacher(components.teacher, shape, accuracy, setup.guess):
                warnings.append(add_arguments(line))
        for line in warnings:
            tell(f"Warning: {line}")
        epoch_warnings = EpochWarnings(
            epochs=recipe.epochs,
            role=components.trained_role,
            lr=recipe.optimizer.lr or 0.0,
            first_loss=setup.first_loss,
            guess=setup.guess,
            test_images=0 if data.test is None else data.test.samples,
            teacher=accuracy,
            uninformed=setup.objective.uninformed_terms(data.train.batch_size),
            tell=lambda line: tell(f"Warning: {line}"),
        )
        trainer.callbacks.insert(0, epoch_warnings)
        yield StartedRun(
            recipe, components, folder, setup, trainer, accuracy, warnings, epoch_warnings
        )


def _write_recipe(folder: RunFolder, recipe: Recipe) -> None:
    """Write a recipe to its run folder."""
    text = to_yaml(recipe).encode()
    folder.write_with_retries(lambda: write_atomically(folder.recipe, text), "its recipe")


def _refuse_changed_weights(recipe: Recipe, folder: RunFolder) -> None:
    """Raise CheckpointError for a version 4 checkpoint of a method that had other weights then.

    CKTF's weights depended on the methods beside it, and CRD's and CKTF's temperature on labels.
    """
    if not isinstance(recipe, DistillRecipe) or not folder.checkpoints.paths:
        return
    names = term_names(recipe.method)
    added = "cktf" in recipe.method.split("+") and bool(names - {"ce", "kd", "cktf"})
    if added or (not recipe.data.labels and names & {"crd", "cktf"}):
        state = folder.checkpoints.newest()
        if state is not None and state["version"] == 4:
            raise CheckpointError(
                f"{folder.path} was begun by a version of cktf that gave {recipe.method!r} other "
                "weights. Start again with another --out; paper/cktf+METHOD and paper/transfer "
                "have the weights of that version."
            )


def save_student(components: RunComponents, count: int, images: Tensor, path: Path) -> None:
    """Write a run's student.

    Args:
        components: of the run.
        count: number of its logits.
        images: [B, C, H, W], a training batch.
        path: the file.
    """
    data, teacher_classes = components.data, components.teacher_classes
    if data.classes is not None:
        classes, dataset = data.classes, data.name
    elif not data.labeled and teacher_classes is not None and len(teacher_classes) == count:
        # A student without labels predicts its teacher's classes.
        classes, dataset = teacher_classes, data.name
    else:
        # Numbered names count as unknown names, which fit any data set.
        classes, dataset = numbered_class_names(count), CUSTOM
    save_network(
        components.student,
        path,
        name=components.student_name,
        classes=classes,
        dataset=dataset,
        images=images,
    )


def finish_run(started: StartedRun, result: TrainResult) -> Run:
    """Save the trained student and the summary."""
    components, folder, setup = started.components, started.folder, started.setup
    if not folder.recipe.exists():
        _write_recipe(folder, started.recipe)
    components.student.eval()
    count, images = setup.num_classes, setup.images
    folder.write_with_retries(
        lambda: save_student(components, count, images, folder.weights), "the student"
    )
    recipe, last, best = started.recipe, result.last, result.best_row
    last_top1 = None if last is None else last.top1
    student_parameters, teacher_parameters = (
        0 if network is None else sum(p.numel() for p in network.parameters())
        for network in (components.student, components.teacher)
    )
    caches = getattr(recipe, "teacher_cache", None) is not None
    summary = {
        "method": setup.method,
        "teacher": components.teacher_name,
        "student": components.student_name,
        "dataset": components.data.name,
        "seed": recipe.seed,
        "epochs": started.folder.rows()[-1]["epoch"],
        "earlier_epochs": list(recipe.earlier_epochs),
        "init_epochs": {phase.name: phase.epochs for phase in setup.phases[:-1]},
        "test_top1": last_top1,
        "test_top5": None if last is None else last.top5,
        "test_standard_error": None if last is None else last.standard_error,
        "test_images": None if last is None else last.samples,
        "best_top1": result.best_top1,
        "best_top1_chosen_on": "test",
        "kept_epoch": (best or folder.rows()[-1])["epoch"],
        "kept_test_top1": last_top1 if best is None else best.get("test_top1"),
        "validation_top1": None if best is None else best["validation_top1"],
        "teacher_top1": started.teacher_accuracy and started.teacher_accuracy.top1,
        "student_parameters": student_parameters,
        "teacher_parameters": teacher_parameters or None,
        "compression_ratio": teacher_parameters / student_parameters or None,
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "interleaved": components.shared_tap is not None and not caches,
        "peak_memory_mb": result.peak_memory_mb,
        "skipped_steps": result.skipped,
        "warnings": [*started.warnings, *started.epoch_warnings.find(folder.rows()).values()],
        **environment(components.runtime.device, components.runtime.dtype),
    }
    folder.write_with_retries(lambda: folder.write_summary(summary), "the summary")
    return Run(folder.path, components.student, summary)


def read_finished(components: RunComponents, folder: RunFolder) -> Run:
    """Read a finished run, and load its weights into the student."""
    student = components.student
    load_weights(student.network if isinstance(student, Normalized) else student, folder.weights)
    return Run(folder.path, student.eval(), json.loads(folder.summary.read_text()))


def _teacher_accuracy(
    components: RunComponents, setup: ObjectiveSetup, trainer: Trainer
) -> Accuracy | None:
    teacher, test = components.teacher, components.data.test
    if teacher is None or test is None or not setup.same_classes:
        return None
    components.runtime.to_device(teacher)
    if "teacher" not in components.measured_accuracy:
        with explain_out_of_memory(test.batch_size, trainer.device):
            components.measured_accuracy["teacher"] = trainer.evaluate(teacher, test)
    return components.measured_accuracy["teacher"]
