"""Two batches of a planned run: what is compared, whether it fits, and what it will take."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from cktf.data import get_labels
from cktf.engine import (
    Stage,
    autocast,
    device_of,
    enough_memory,
    gradient_norm,
    peak_memory_mb,
    statistics_kept,
    to_device,
)
from cktf.models import Normalized
from cktf.recipes import Recipe, numbered_class_names
from cktf.taps import CachedTap, FeaturePaths, Features, Tap, preserve_modes
from cktf.workflows.assembly import Assembly, assemble
from cktf.workflows.components import RunComponents

_BATCHES = 2
# A trained network knows its training images by more than this many times the share of guesses.
_MORE_THAN_GUESSING = 2.0
_IMBALANCE = 10


@dataclass(frozen=True)
class NetworkPreview:
    """A network as the run will see it.

    Attributes:
        name: of the network.
        paths: where its features are.
        features: of a batch, those that the method reads.
        parameters: how many.
        input: what reaches it, and how it is normalized.
    """

    name: str
    paths: FeaturePaths
    features: Features
    parameters: int
    input: str


@dataclass(frozen=True)
class DryRun:
    """What two batches told.

    Attributes:
        student, teacher: the networks; the teacher None where the run has none.
        data: one line on the images.
        terms: loss of each of the two batches, by term.
        gradient: norm over the student's parameters at the second batch.
        step_seconds: of the second batch, with loading it.
        steps: of an epoch.
        epochs: of the run, initialization stages included.
        contrast: what contrast takes of memory; empty for methods without.
        peak_memory_mb: largest memory held so far.
        advice: what looks wrong, each with its fix.
    """

    student: NetworkPreview
    teacher: NetworkPreview | None
    data: str
    terms: list[dict[str, float]]
    gradient: float
    step_seconds: float
    steps: int
    epochs: int
    contrast: str
    peak_memory_mb: float
    advice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    images: Tensor
    labels: Tensor | None
    student: Features
    teacher: Features | None
    terms: dict[str, float]
    seconds: float


def preview_run(recipe: Recipe, parts: RunComponents) -> DryRun:
    """Forward and backward on two batches; no weight changes, and nothing is written.

    Raises:
        CktfError: networks, data and method do not fit.
    """
    fitting = assemble(recipe, parts)
    stage, device = fitting.stages[-1], device_of(recipe.training())
    set_seed(recipe.seed)
    footprint = fitting.objective.footprint(parts.data.train.batch_size)
    footprint.check(device, built=True)
    enough = enough_memory(parts.data.train.batch_size, device, footprint, training=True)
    with enough, preserve_modes(parts.student), preserve_modes(parts.teacher):
        for network in (parts.student, parts.teacher):
            if network is not None:
                to_device(network, recipe.training(), device)
        fitting.objective.to(device)
        steps = list(_steps(recipe, parts, stage, device))
    last = steps[-1]
    student = _seen(parts.student, parts.student_name, stage, last.student, last.images)
    teacher = None
    if parts.teacher is not None and last.teacher is not None:
        name = parts.teacher_name or type(parts.teacher).__name__
        teacher = _seen(parts.teacher, name, stage, last.teacher, last.images)
    gradient = float(gradient_norm(list(parts.student.parameters()), None))
    parts.student.zero_grad(set_to_none=True)
    advice = list(_advice(fitting, parts, steps, student, teacher, gradient))
    return DryRun(
        student, teacher, parts.data.description or parts.data.name, [s.terms for s in steps],
        gradient, last.seconds, len(parts.data.train),
        sum(s.epochs for s in fitting.stages), str(footprint) if footprint.step else "",
        peak_memory_mb(device), advice,
    )  # fmt: skip


def _steps(
    recipe: Recipe, parts: RunComponents, stage: Stage, device: torch.device
) -> Iterator[_Step]:
    stage.objective.train()
    assert stage.student is not None
    if parts.teacher is not None:
        parts.teacher.eval().requires_grad_(False)
    # Two batches may be all that an epoch has.
    batches = iter(islice(parts.data.train.epoch(1), _BATCHES))
    start = time.perf_counter()
    with statistics_kept(parts.student):
        for batch in batches:
            batch = batch.to(device)
            stage.set_modes()
            parts.student.zero_grad(set_to_none=True)
            with autocast(recipe.runtime.precision, device):
                with torch.no_grad():
                    teacher = None if stage.teacher is None else stage.teacher(batch.images)
                student = stage.student(batch.images)
                loss = stage.objective(student, teacher, batch)
            if loss.total.requires_grad:
                loss.total.backward()
            terms = {name: float(value) for name, value in loss.terms.items()}
            seconds = time.perf_counter() - start
            yield _Step(batch.images, batch.labels, student, teacher, terms, seconds)
            start = time.perf_counter()


def _seen(
    network: nn.Module, name: str, stage: Stage, features: Features, images: Tensor
) -> NetworkPreview:
    tap = stage.student if stage.student and stage.student.model is network else stage.teacher
    assert isinstance(tap, Tap | CachedTap)
    shape, normalized = images.shape, "normalizes by itself, or not at all"
    if isinstance(network, Normalized):
        shape = network.input_shape(images.shape)
        mean, std = (" ".join(f"{v:.3f}" for v in t.flatten()) for t in (network.mean, network.std))
        normalized = f"mean {mean}, std {std}"
    size = " x ".join(map(str, shape[1:]))
    count = sum(p.numel() for p in network.parameters())
    return NetworkPreview(name, tap.paths, features, count, f"{size}; {normalized}")


def _advice(
    fitting: Assembly,
    parts: RunComponents,
    steps: list[_Step],
    student: NetworkPreview,
    teacher: NetworkPreview | None,
    gradient: float,
) -> Iterator[str]:
    bad = {name for step in steps for name, v in step.terms.items() if not abs(v) < float("inf")}
    if bad:
        yield (
            f"The loss is not finite; it comes from: {', '.join(sorted(bad))}. Look for NaN in the "
            "images, and for weights of a network that did not train well."
        )
    yield from fitting.advice
    if not gradient > 0:
        yield "No gradient reaches the student. Are its parameters frozen? Set requires_grad."
    if parts.data.labeled:
        yield from _about_labels(parts, fitting.num_classes)
    if teacher is None:
        return
    if not fitting.same_classes:
        yield (
            f"The teacher tells {teacher.features.logits.shape[1]} classes and the data has "
            f"{fitting.num_classes}: fine for what compares features, as cktf does; kd needs a "
            "teacher of the same classes."
        )
    elif steps[0].labels is not None:
        yield from _about_teacher(steps, teacher, fitting.num_classes)
    if teacher.parameters <= student.parameters:
        yield (
            f"The teacher ({teacher.parameters:,} parameters) is no larger than the student "
            f"({student.parameters:,}). Are --teacher and --student the wrong way round?"
        )


def _about_teacher(steps: list[_Step], teacher: NetworkPreview, classes: int) -> Iterator[str]:
    right, count = 0, 0
    for step in steps:
        assert step.teacher is not None and step.labels is not None
        right += int((step.teacher.logits.argmax(1) == step.labels).sum())
        count += len(step.labels)
    # At least a few right answers are expected, so that luck does not decide.
    if count >= 2 * classes and right <= _MORE_THAN_GUESSING * count / classes:
        yield (
            f"The teacher is right on {right} of {count} training images, as by guessing. Are its "
            f"weights loaded, are the classes in its order, and does it expect this input "
            f"({teacher.input})?"
        )


def _about_labels(parts: RunComponents, classes: int) -> Iterator[str]:
    counts = get_labels(parts.data.raw_train).bincount(minlength=classes)
    names = parts.data.classes or numbered_class_names(classes)
    empty = [names[c] for c in range(classes) if not counts[c]]
    if empty:
        yield (
            f"{len(empty)} of {classes} classes have no training image ({', '.join(empty[:3])}"
            f"{', …' if len(empty) > 3 else ''}). Is the student built for more classes than the "
            "data has, or is a folder missing?"
        )
    some = counts[counts > 0]
    if int(some.max()) > _IMBALANCE * int(some.min()):
        yield (
            f"The largest class has {int(some.max())} images and the smallest {int(some.min())}. "
            "Accuracy will be that of the large classes; add images to the small ones."
        )
