"""Networks, data and objective of a run, known to fit together before anything is trained."""

from dataclasses import dataclass

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.data import get_labels, has_stored_labels
from cktf.engine import MAIN, Stage, device_of, enough_memory
from cktf.objectives import BuildContext, Objective, WeightedSum, compose, features_read
from cktf.recipes import CUSTOM, DistillRecipe, Recipe, TrainRecipe
from cktf.taps import (
    FeaturePaths,
    Features,
    Tap,
    TeacherTap,
    eval_mode,
    to_device_of,
)
from cktf.workflows.checks import (
    check_classes,
    check_labels,
    check_stated,
    check_student,
    warn_if_normalized_twice,
)
from cktf.workflows.components import RunComponents
from cktf.workflows.inspection import explain_rejected_images, find_feature_paths
from cktf.workflows.teacher_cache import cached

_EXAMPLES = 8
# Peaks of the learning rate that are for training from no weights.
_FROM_NONE = 0.05
_GOING_ON = (
    "The student goes on from trained weights, which a peak rate of 0.05 or more undoes: it is for "
    "training from none. Try --set optimizer.lr=0.01."
)


@dataclass(frozen=True)
class _Tried:
    """A network after a dry run: on what, where its features are and as what, what looks wrong."""

    images: Tensor
    paths: FeaturePaths
    features: Features
    advice: str


@dataclass(frozen=True)
class Assembly:
    """Networks, data and objective that are known to fit together, and what looks wrong."""

    method: str
    num_classes: int
    images: Tensor
    objective: WeightedSum
    stages: list[Stage]
    same_classes: bool
    advice: list[str]


def assemble(recipe: Recipe, parts: RunComponents) -> Assembly:
    """Tap both networks and build the objective between them, sized by a dry run.

    Raises:
        CktfError: networks, data and method do not fit.
    """
    method = recipe.method if isinstance(recipe, DistillRecipe) else "ce"
    options = recipe.options if isinstance(recipe, DistillRecipe) else {}
    device = device_of(recipe.training())
    check_student(parts)
    set_seed(recipe.seed)
    with enough_memory(parts.data.train.batch_size, device, training=True):
        batch, student, teacher = _dry_run(parts, method, recipe)
    num_classes = int(student.features.logits.shape[1])
    check_classes(num_classes, parts)
    labels = get_labels(parts.data.raw_train) if parts.data.labeled else None
    if labels is not None:
        check_labels("training", labels, num_classes)
        if has_stored_labels(parts.data.raw_train):
            check_stated(labels, batch)
    if parts.data.raw_test is not None:
        check_labels("test", get_labels(parts.data.raw_test), num_classes)
    teacher_features = None if teacher is None else teacher.features
    setting = BuildContext(student.features, teacher_features, parts.data.train.samples, labels)
    objective = compose(method, setting, options)
    same = teacher is None or teacher.features.logits.shape[1] == num_classes
    stages = _stages(recipe, parts, objective, student, teacher)
    advice = [tried.advice for tried in (student, teacher) if tried is not None and tried.advice]
    trains_all = not isinstance(recipe, TrainRecipe) or recipe.trains == "all"
    if parts.began and trains_all and (recipe.optimizer.lr or 0) >= _FROM_NONE:
        advice.append(_GOING_ON)
    return Assembly(method, num_classes, student.images, objective, stages, same, advice)


def _stages(
    recipe: Recipe,
    parts: RunComponents,
    objective: WeightedSum,
    student: _Tried,
    teacher: _Tried | None,
) -> list[Stage]:
    """The phases of the methods, then training on their sum, each with what it reads tapped."""

    def tapped(part: Objective, compile: bool = False) -> tuple[Tap, TeacherTap | None]:
        # Blocks are chosen among, and only the teacher's.
        own = Tap(parts.student, student.paths, part.needs - {"blocks"}, compile=compile)
        if parts.teacher is None or teacher is None or not part.needs_teacher:
            return own, None
        if isinstance(recipe, DistillRecipe) and recipe.teacher_cache is not None:
            # What is kept for one method serves another that reads less.
            needs = part.needs | ({"embedding"} if teacher.paths.embedding else set())
            tap = Tap(parts.teacher, teacher.paths, needs, compile=compile)
            return own, cached(recipe, parts, objective, tap, teacher.features)
        if parts.shared is not None:
            return own, parts.shared.add_reader(teacher.paths, part.needs)
        return own, Tap(parts.teacher, teacher.paths, part.needs, compile=compile)

    stages = []
    for phase in objective.phases():
        own, other = tapped(phase.objective)
        epochs = recipe.init_epochs if isinstance(recipe, DistillRecipe) else 0
        stages.append(
            Stage(
                phase.name,
                phase.objective,
                own if phase.trains_student else None,
                other,
                epochs or 0,
                phase.lr,
                phase.weight,
            )
        )
    pair = tapped(objective, recipe.runtime.compile)
    frozen = isinstance(recipe, TrainRecipe) and recipe.trains == "classifier"
    return [*stages, Stage(MAIN, objective, *pair, recipe.epochs, keeps_statistics=frozen)]


def _dry_run(
    parts: RunComponents, method: str, recipe: Recipe
) -> tuple[Batch, _Tried, _Tried | None]:
    """A first batch, and both networks on some of it: where features are, and of which shapes."""
    reads = features_read(method)
    if isinstance(recipe, DistillRecipe) and recipe.teacher_cache is not None:
        reads |= {"embedding"}
    named: dict[str, _Named] = {"student": ([], None), "teacher": ([], None)}
    if isinstance(recipe, DistillRecipe):
        named["student"] = recipe.student_taps, recipe.student_embedding
        named["teacher"] = recipe.teacher_taps, recipe.teacher_embedding
    if parts.data.test is not None:
        tested = next(iter(parts.data.test.epoch(0))).images[:_EXAMPLES]
        _try(parts.student, "student", parts.student_name, tested, {"logits"})
    batch = next(iter(parts.data.train.epoch(1)))
    images = batch.images[:_EXAMPLES]
    student = _try(parts.student, "student", parts.student_name, images, reads, named["student"])
    if parts.teacher is None:
        return batch, student, None
    name = parts.teacher_name or CUSTOM
    return batch, student, _try(parts.teacher, "teacher", name, images, reads, named["teacher"])


# Paths of the stages and of the embedding, where the user gives them.
_Named = tuple[list[str], str | None]


def _try(
    network: nn.Module,
    role: str,
    name: str,
    images: Tensor,
    reads: set[str],
    named: _Named = ([], None),
) -> _Tried:
    images, who = to_device_of(network, images), f"{role} {name}"
    with explain_rejected_images(images, who), torch.no_grad(), eval_mode(network):
        wanted = reads > {"logits"}
        paths = find_feature_paths(network, images, *named) if wanted else FeaturePaths()
        there = {n for n in reads - {"logits"} if getattr(paths, n)}
        features = Tap(network, paths, there)(images)
        return _Tried(images, paths, features, warn_if_normalized_twice(network, who, images))
