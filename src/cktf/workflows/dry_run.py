"""A dry run: the training step on two batches, which shows what is compared and what it costs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch

from cktf.batch import Batch
from cktf.data import get_labels
from cktf.engine import explain_out_of_memory, gradient_norm, peak_memory_mb, preserve_buffers
from cktf.models import Normalized
from cktf.recipes import Recipe, numbered_class_names
from cktf.taps import CachedTap, FeaturePaths, Features, Tap, freeze, preserve_modes
from cktf.workflows.components import RunComponents
from cktf.workflows.objective_setup import ObjectiveSetup, set_up_objective

_BATCHES = 2
# A trained network classifies its training images better than guessing by more than this factor.
_MORE_THAN_GUESSING = 2.0
_IMBALANCE = 10


@dataclass(frozen=True)
class NetworkPreview:
    """A network in a dry run.

    Attributes:
        name: name of the network.
        paths: paths of its features.
        features: the features of a batch that the method reads.
        parameters: number of parameters.
        input: size and normalization of its input.
    """

    name: str
    paths: FeaturePaths
    features: Features
    parameters: int
    input: str


@dataclass(frozen=True)
class DryRun:
    """The results of a dry run.

    Attributes:
        student, teacher: the networks; teacher None where the run has none.
        data: one line about the images.
        terms: loss of each batch by term.
        gradient: gradient norm over the student's parameters, of the last batch.
        step_seconds: time of the last batch's step, loading included.
        steps: number of steps in an epoch.
        epochs: number of epochs of the run, initialization phases included.
        objective: weight of each term.
        contrast: memory of the contrastive objectives; empty without any.
        peak_memory_mb: peak memory so far, in MiB.
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
    objective: str
    contrast: str
    peak_memory_mb: float
    advice: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    batch: Batch
    student: Features
    teacher: Features | None
    terms: dict[str, float]
    seconds: float


def preview_run(recipe: Recipe, components: RunComponents) -> DryRun:
    """Run the training step, forward and backward, on two batches; CktfError if it does not fit.

    No weight changes, and nothing is written.
    """
    setup, runtime = set_up_objective(recipe, components), components.runtime
    step, device = setup.phases[-1].step, runtime.device
    batch_size = components.data.train.batch_size
    footprint = setup.objective.footprint(batch_size)
    footprint.check(device, built=True)
    runtime.reset_seed()
    with (
        explain_out_of_memory(batch_size, device, footprint, training=True),
        preserve_modes(components.student),
        preserve_modes(components.teacher),
    ):
        runtime.to_device(components.student)
        if components.teacher is not None:
            freeze(components.teacher)
            runtime.to_device(components.teacher)
        setup.objective.to(device)
        if isinstance(step.teacher_tap, CachedTap):
            step.teacher_tap.uses_disk = False
        steps = []
        step.train()
        start = time.perf_counter()
        with preserve_buffers(components.student):
            for batch in islice(components.data.train.epoch(1), _BATCHES):
                batch = batch.to(device)
                components.student.zero_grad(set_to_none=True)
                with runtime.autocast():
                    features = step.features(batch)
                    loss = step.objective(*features, batch)
                if loss.total.requires_grad:
                    torch.autograd.backward(loss.total)
                step.objective.after_step()
                terms = {name: float(value) for name, value in loss.terms.items()}
                steps.append(_Step(batch, *features, terms, time.perf_counter() - start))
                start = time.perf_counter()
    last = steps[-1]
    assert step.student_tap is not None
    student = _preview(step.student_tap, components.student_name, last.student, last.batch)
    teacher = None
    if step.teacher_tap is not None and last.teacher is not None:
        assert isinstance(step.teacher_tap, Tap | CachedTap)
        name = components.teacher_name or type(components.teacher).__name__
        teacher = _preview(step.teacher_tap, name, last.teacher, last.batch)
    gradient = float(gradient_norm(list(components.student.parameters()), None))
    components.student.zero_grad(set_to_none=True)
    advice = list(_find_warnings(setup, components, steps, student, teacher, gradient))
    return DryRun(
        student, teacher, components.data.description or components.data.name,
        [s.terms for s in steps], gradient, last.seconds, len(components.data.train),
        sum(phase.epochs for phase in setup.phases), setup.objective.describe(),
        str(footprint) if footprint.step else "", peak_memory_mb(device), advice,
    )  # fmt: skip


def _preview(tap: Tap | CachedTap, name: str, features: Features, batch: Batch) -> NetworkPreview:
    network, shape = tap.model, batch.images.shape
    normalization = "normalizes by itself, or not at all"
    if isinstance(network, Normalized):
        shape = network.resized_shape(shape)
        mean, std = (" ".join(f"{v:.3f}" for v in t.flatten()) for t in (network.mean, network.std))
        normalization = f"mean {mean}, std {std}"
    size = " x ".join(map(str, shape[1:]))
    count = sum(p.numel() for p in network.parameters())
    return NetworkPreview(name, tap.paths, features, count, f"{size}; {normalization}")


def _find_warnings(
    setup: ObjectiveSetup,
    components: RunComponents,
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
    yield from setup.warnings
    if not gradient > 0:
        yield "No gradient reaches the student. Are its parameters frozen? Set requires_grad."
    if components.data.labeled:
        yield from _label_warnings(components, setup.num_classes)
    if teacher is None:
        return
    if not setup.same_classes:
        yield (
            f"The teacher tells {teacher.features.logits.shape[1]} classes and the data has "
            f"{setup.num_classes}: fine for what compares features, as cktf does; kd needs a "
            "teacher of the same classes."
        )
    elif steps[0].batch.labels is not None:
        yield from _teacher_warnings(steps, teacher, setup.num_classes)
    if teacher.parameters <= student.parameters:
        yield (
            f"The teacher ({teacher.parameters:,} parameters) is no larger than the student "
            f"({student.parameters:,}). Are --teacher and --student the wrong way round?"
        )


def _teacher_warnings(steps: list[_Step], teacher: NetworkPreview, classes: int) -> Iterator[str]:
    right, count = 0, 0
    for step in steps:
        if step.teacher is not None and step.batch.labels is not None:
            right += int((step.teacher.logits.argmax(1) == step.batch.labels).sum())
            count += len(step.batch.labels)
    # With fewer images, so few right answers are likely by chance.
    if count >= 2 * classes and right <= _MORE_THAN_GUESSING * count / classes:
        yield (
            f"The teacher is right on {right} of {count} training images, as by guessing. Are its "
            f"weights loaded, are the classes in its order, and does it expect this input "
            f"({teacher.input})?"
        )


def _label_warnings(components: RunComponents, classes: int) -> Iterator[str]:
    counts = get_labels(components.data.raw_train).bincount(minlength=classes)
    names = components.data.classes or numbered_class_names(classes)
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
