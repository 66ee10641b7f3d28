"""Check that networks, data and method fit together, and build the objective and its phases."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.data import get_labels, has_stored_labels
from cktf.engine import MAIN, TrainPhase, TrainStep, explain_out_of_memory
from cktf.objectives import BuildContext, Objective, WeightedSum, compose, features_read
from cktf.recipes import CUSTOM, DistillRecipe, Recipe, TrainRecipe
from cktf.taps import (
    FeaturePaths,
    Features,
    Tap,
    TeacherTap,
    eval_mode,
    fit_memory_format,
    to_device_of,
)
from cktf.workflows.checks import (
    check_classes,
    check_labels,
    check_stored_labels,
    check_student,
    warn_if_contiguous,
    warn_if_normalized_twice,
    warn_if_ranges_differ,
)
from cktf.workflows.components import RunComponents
from cktf.workflows.inspection import explain_rejected_images, find_feature_paths
from cktf.workflows.rehearsal import check_weights, rehearse
from cktf.workflows.run_warnings import find_warnings
from cktf.workflows.teacher_feature_cache import cached_tap

_EXAMPLES = 8
# Peak learning rates from here on are for training from random weights.
_HIGH_LR = 0.05


@dataclass(frozen=True)
class _ExampleRun:
    """Features of a network for a few images, with warnings about its input."""

    images: Tensor
    paths: FeaturePaths
    features: Features
    warnings: list[str]


@dataclass(frozen=True)
class ObjectiveSetup:
    """Objective and phases of a run whose networks, data and method fit together.

    Attributes:
        method: the method string; `ce` without a teacher.
        num_classes: number of logits of the student.
        images: [B, C, H, W], a few training images.
        objective: the weighted sum of the methods.
        phases: initialization phases, then the main phase.
        same_classes: whether the teacher has as many logits as the student.
        guess: accuracy of guessing the most frequent class of the test images, from 0 to 1.
        first_loss: of the first batch, before training.
        warnings: what looks wrong, a sentence each.
    """

    method: str
    num_classes: int
    images: Tensor
    objective: WeightedSum
    phases: list[TrainPhase]
    same_classes: bool
    guess: float
    first_loss: float
    warnings: list[str]


def set_up_objective(recipe: Recipe, components: RunComponents) -> ObjectiveSetup:
    """Tap both networks, build the objective and rehearse a step of each phase.

    No weight changes, and nothing is written.

    Raises:
        CktfError: networks, data, method and memory do not fit, or the student would not learn.
    """
    method = recipe.method if isinstance(recipe, DistillRecipe) else "ce"
    options = recipe.options if isinstance(recipe, DistillRecipe) else {}
    check_student(components)
    components.runtime.reset_seed()
    device, batch_size = components.runtime.device, components.data.train.batch_size
    with explain_out_of_memory(batch_size, device, training=True):
        test = components.data.test
        test_images = None if test is None else next(iter(test.epoch(0))).images
        batch, student, teacher = _run_examples(components, method, recipe, test_images)
    # Lazy layers have their weights now.
    check_weights(components)
    num_classes = int(student.features.logits.shape[1])
    check_classes(num_classes, components)
    labels, guess = _check_all_labels(components, batch, num_classes)
    teacher_features = None if teacher is None else teacher.features
    size = components.data.train.samples
    context = BuildContext(student.features, teacher_features, size, labels)
    objective = compose(method, context, options)
    same = teacher_features is None or teacher_features.logits.shape[1] == num_classes
    phases = _build_phases(recipe, components, objective, student, teacher)
    warnings = [line for run in (student, teacher) if run is not None for line in run.warnings]
    if test_images is not None:
        ranges = warn_if_ranges_differ(batch.images, test_images)
        warnings += [ranges] if ranges else []
    trains_all = not isinstance(recipe, TrainRecipe) or recipe.trains == "all"
    if components.student_origin and trains_all and (recipe.optimizer.lr or 0) >= _HIGH_LR:
        warnings.append(
            f"The {components.trained_role} starts from trained weights, and a peak learning "
            f"rate of {_HIGH_LR} or more destroys them. Try --set optimizer.lr=0.01."
        )
    footprint = objective.footprint(batch_size)
    footprint.check(device, built=True)
    with explain_out_of_memory(batch_size, device, footprint, training=True):
        skips = recipe.runtime.on_nonfinite == "skip"
        rehearsal = rehearse(phases, components, batch, skips=skips)
    warnings += find_warnings(recipe, components, phases[-1], batch, rehearsal, labels)
    return ObjectiveSetup(
        method, num_classes, student.images, objective, phases, same, guess,
        float(rehearsal.loss.total), warnings,
    )  # fmt: skip


def _check_all_labels(
    components: RunComponents, batch: Batch, num_classes: int
) -> tuple[Tensor | None, float]:
    """Check training and test labels; returns the former and `ObjectiveSetup.guess`."""
    data, guess = components.data, 1.0
    labels = get_labels(data.raw_train) if data.labeled else None
    if labels is not None:
        check_labels("training", labels, num_classes)
        if has_stored_labels(data.raw_train):
            check_stored_labels(labels, batch)
    if data.raw_test is not None:
        test_labels = get_labels(data.raw_test)
        check_labels("test", test_labels, num_classes)
        guess = int(test_labels.bincount().max()) / len(test_labels)
    return labels, guess


def _build_phases(
    recipe: Recipe,
    components: RunComponents,
    objective: WeightedSum,
    student: _ExampleRun,
    teacher: _ExampleRun | None,
) -> list[TrainPhase]:
    """Build the initialization phases of the methods, then the main phase on their sum."""
    teacher_network, shared_tap = components.teacher, components.shared_tap

    def tap_teacher(part: Objective, compile: bool) -> TeacherTap | None:
        if teacher_network is None or teacher is None or not part.needs_teacher:
            return None
        if isinstance(recipe, DistillRecipe) and recipe.teacher_cache is not None:
            # Features that are cached for one method serve another that reads less.
            needs = part.features | ({"embedding"} if teacher.paths.embedding else set())
            tap = Tap(teacher_network, teacher.paths, needs, compile=compile)
            return cached_tap(recipe, components, objective, tap, teacher.features)
        if shared_tap is not None:
            return shared_tap.add_reader(teacher.paths, part.features)
        return Tap(teacher_network, teacher.paths, part.features, compile=compile)

    def step(part: Objective, *, compile: bool = False, trains_student: bool = True) -> TrainStep:
        # Objectives read blocks of the teacher only.
        needs = part.features - {"blocks"}
        student_tap = Tap(components.student, student.paths, needs, compile=compile)
        return TrainStep(
            part,
            student_tap if trains_student else None,
            tap_teacher(part, compile),
            components.runtime,
            freeze_statistics=isinstance(recipe, TrainRecipe) and recipe.trains == "classifier",
        )

    epochs = (recipe.init_epochs or 0) if isinstance(recipe, DistillRecipe) else 0
    phases = [
        TrainPhase(
            phase.name,
            step(phase.objective, trains_student=phase.trains_student),
            epochs,
            phase.lr,
            phase.weight,
        )
        for phase in objective.phases()
    ]
    main = step(objective, compile=recipe.runtime.compile)
    if recipe.runtime.compile:
        objective.compile()
    return [*phases, TrainPhase(MAIN, main, recipe.epochs)]


def _run_examples(
    components: RunComponents, method: str, recipe: Recipe, test_images: Tensor | None
) -> tuple[Batch, _ExampleRun, _ExampleRun | None]:
    """Load the first batch, and run both networks on some of it; the student on test images too."""
    student, teacher, needs = components.student, components.teacher, features_read(method)
    student_who = components.trained_title
    if test_images is not None:
        _run_example(student, student_who, test_images[:_EXAMPLES], {"logits"})
    batch = next(iter(components.data.train.epoch(1)))
    images = batch.images[:_EXAMPLES]
    if not isinstance(recipe, DistillRecipe):
        return batch, _run_example(student, student_who, images, needs), None
    if recipe.teacher_cache is not None:
        needs |= {"embedding"}
    assert teacher is not None
    student_paths = recipe.student_taps, recipe.student_embedding
    teacher_paths = recipe.teacher_taps, recipe.teacher_embedding
    teacher_who = f"teacher {components.teacher_name or CUSTOM}"
    return (
        batch,
        _run_example(student, student_who, images, needs, *student_paths),
        _run_example(teacher, teacher_who, images, needs, *teacher_paths),
    )


def _run_example(
    network: nn.Module,
    who: str,
    images: Tensor,
    needs: set[str],
    stages: Sequence[str] = (),
    embedding: str | None = None,
) -> _ExampleRun:
    images, paths = to_device_of(network, images), FeaturePaths()
    with explain_rejected_images(network, images, who), torch.no_grad(), eval_mode(network):
        fit_memory_format(network, images)
        if needs > {"logits"}:
            paths = find_feature_paths(network, images, stages, embedding)
        known = {name for name in needs - {"logits"} if getattr(paths, name)}
        features = Tap(network, paths, known)(images)
        warnings = [
            warn_if_normalized_twice(network, who, images),
            warn_if_contiguous(network, who),
        ]
    return _ExampleRun(images, paths, features, list(filter(None, warnings)))
