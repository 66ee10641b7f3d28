"""What looks wrong in a run before training, a sentence each, found by its rehearsal.

A warning says what was found and what to try. None of them stops a run.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.engine import Accuracy, TrainPhase
from cktf.models import Normalized
from cktf.objectives.base import BATCH_FIELDS
from cktf.recipes import Recipe, TrainRecipe, numbered_class_names
from cktf.taps import Features
from cktf.workflows.components import RunComponents
from cktf.workflows.rehearsal import Rehearsal, feature_tensors

_IMBALANCE = 10
# A classifier that covers less than this of the way from guessing to no error is as good as none.
_SKILL = 0.05
# Probabilities of a row add up to 1 but for rounding, in bfloat16 too.
_ROUNDING = 0.02


def find_warnings(
    recipe: Recipe,
    components: RunComponents,
    phase: TrainPhase,
    batch: Batch,
    rehearsal: Rehearsal,
    labels: Tensor | None,
) -> Iterator[str]:
    """Find what looks wrong before training.

    Args:
        recipe: of the run.
        components: of the run.
        phase: its main phase.
        batch: the first training batch.
        rehearsal: the step on it.
        labels: [N] int64, of all training images; None where there are none.
    """
    terms = rehearsal.loss.terms
    if bad := [name for name, value in terms.items() if not bool(value.isfinite())]:
        yield (
            f"The loss is not finite; it comes from: {', '.join(bad)}. Look for NaN in the "
            "images, and for weights of a network that did not train well."
        )
    yield from _student_warnings(recipe, components, phase, rehearsal)
    num_classes = rehearsal.student.logits.shape[1]
    if labels is not None:
        yield from _label_warnings(components, labels, num_classes)
    if components.teacher is None:
        return
    yield from _size_warnings(components, batch)
    student_size, teacher_size = (
        sum(p.numel() for p in network.parameters())
        for network in (components.student, components.teacher)
    )
    if teacher_size <= student_size:
        yield (
            f"The teacher ({teacher_size:,} parameters) is no larger than the student "
            f"({student_size:,}). Are --teacher and --student the wrong way round?"
        )
    if rehearsal.teacher is not None:
        yield from _teacher_warnings(components, batch, rehearsal.teacher, num_classes)


def _student_warnings(
    recipe: Recipe, components: RunComponents, phase: TrainPhase, rehearsal: Rehearsal
) -> Iterator[str]:
    if warning := _describe_activation(components.trained_role, rehearsal.student):
        yield warning
    role = components.trained_role
    parameters = dict(components.student.named_parameters())
    total = sum(p.numel() for p in parameters.values())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    trains_all = not isinstance(recipe, TrainRecipe) or recipe.trains == "all"
    if trains_all and 2 * sum(parameters[name].numel() for name in frozen) > total:
        yield (
            f"Most of the {role} does not train: {_list_some(frozen)} have requires_grad=False. "
            f"If it should, call {role}.requires_grad_(True) first."
        )
    if unused := rehearsal.without_gradient:
        yield (
            f"{len(unused)} of the {role}'s {len(parameters)} parameters get no gradient and do "
            f"not learn: {_list_some(unused)}. Does its forward use them, or detach what they "
            "compute?"
        )
    objective = phase.step.objective
    for name, term in getattr(objective, "terms", {}).items():
        reads = term.requires - BATCH_FIELDS or {"logits"}
        tensors = [t for kind in sorted(reads) for t in feature_tensors(rehearsal.student, kind)]
        if not any(tensor.requires_grad for tensor in tensors):
            yield (
                f"{name} teaches the student nothing: what it reads ({', '.join(sorted(reads))}) "
                "has no gradient. Those layers are frozen, or their output is detached; name "
                "others with student_taps, or leave the method out."
            )


def _list_some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"


def _describe_activation(who: str, features: Features) -> str:
    """A warning where a classifier gives numbers that are no logits, or ``""``."""
    logits = features.logits.detach().float()
    if logits.shape[1] < 2 or not bool(logits.isfinite().all()):
        return ""
    harm = "flattens what they tell. Give the network without that last step."
    if _are_probabilities(logits):
        return (
            f"The {who}'s outputs are probabilities, as after softmax, and every loss takes the "
            f"softmax of them again, which {harm}"
        )
    if bool((logits <= 0).all()) and _are_probabilities(logits.exp()):
        return (
            f"The {who}'s outputs are logarithms of probabilities, as after log_softmax. Losses "
            "take them as logits with the same result; logits are what is expected."
        )
    low, high = float(logits.min()), float(logits.max())
    # A sigmoid gives exactly 0 only where others are nearly 1.
    if (0.5 if low > 0 else 0.99) < high <= 1 and low >= 0:
        return (
            f"The {who}'s outputs are from 0 to 1, as after sigmoid, and every loss takes the "
            f"softmax of them, which {harm}"
        )
    if low == 0 < high:
        return (
            f"The {who}'s outputs are never negative and often 0, as after ReLU: classes at 0 are "
            "not told apart and get no gradient. Give the network without that last step."
        )
    return ""


def _are_probabilities(rows: Tensor) -> bool:
    """Whether rows [B, C] are from 0 to 1 and add up to 1."""
    return bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < _ROUNDING).all())


def _size_warnings(components: RunComponents, batch: Batch) -> Iterator[str]:
    trained = components.teacher_trained_size
    assert components.teacher is not None
    size = tuple(_input_shape(components.teacher, batch.images.shape)[2:])
    if trained is not None and trained != size:
        before, now = ("x".join(map(str, sides)) for sides in (trained, size))
        yield (
            f"The teacher was trained on images of {before} pixels and gets {now}, which may cost "
            f"much of its accuracy. Have it resize them: --teacher-size {trained[0]}."
        )


def _teacher_warnings(
    components: RunComponents, batch: Batch, features: Features, num_classes: int
) -> Iterator[str]:
    teacher_classes = features.logits.shape[1]
    if warning := _describe_activation("teacher", features):
        yield warning
    if teacher_classes != num_classes:
        yield (
            f"The teacher tells {teacher_classes} classes and the data has {num_classes}: fine for "
            "what compares features, as cktf does; kd needs a teacher of the same classes."
        )
    elif batch.labels is not None:
        right = int((features.logits.argmax(1).cpu() == batch.labels.cpu()).sum())
        if is_guess(right / len(batch), len(batch), 1 / num_classes):
            assert components.teacher is not None
            yield _guessing_teacher(
                f"on {right} of {len(batch)} training images",
                describe_input(components.teacher, batch.images.shape),
            )


def _guessing_teacher(where: str, input: str) -> str:
    return (
        f"The teacher is right {where}, as by guessing. Are its weights loaded, are the classes in "
        f"its order, and does it expect this input ({input})?"
    )


def is_guess(share: float, count: int, guess: float) -> bool:
    """Whether a share of right answers among `count` is that of guessing, a share of `guess`.

    It is not said where so few images could not tell.
    """
    spread = 2 * math.sqrt(guess * (1 - guess) / count)
    limit = guess + max(_SKILL * (1 - guess), spread)
    return guess < 1 and limit < (1 + guess) / 2 and share <= limit


def _label_warnings(components: RunComponents, labels: Tensor, classes: int) -> Iterator[str]:
    counts = labels.bincount(minlength=classes)
    names = components.data.classes or numbered_class_names(classes)
    empty = [names[c] for c in range(classes) if not counts[c]]
    if empty:
        yield (
            f"{len(empty)} of {classes} classes have no training image ({_list_some(empty)}). Is "
            f"the {components.trained_role} built for more classes than the data has, or is "
            "a folder missing?"
        )
    some = counts[counts > 0]
    if int(some.max()) > _IMBALANCE * int(some.min()):
        yield (
            f"The largest class has {int(some.max())} images and the smallest {int(some.min())}. "
            "Accuracy will be that of the large classes; add images to the small ones."
        )


def describe_input(network: nn.Module, images: torch.Size) -> str:
    """Size and normalization of the input of a network for images [B, C, H, W]."""
    normalization = "normalizes by itself, or not at all"
    if isinstance(network, Normalized):
        mean, std = (" ".join(f"{v:.3f}" for v in t.flatten()) for t in (network.mean, network.std))
        normalization = f"mean {mean}, std {std}"
    return f"{' x '.join(map(str, _input_shape(network, images)[1:]))}; {normalization}"


def _input_shape(network: nn.Module, images: torch.Size) -> torch.Size:
    return network.resized_shape(images) if isinstance(network, Normalized) else images


def warn_of_teacher(teacher: nn.Module, images: torch.Size, top1: Accuracy, guess: float) -> str:
    """A warning if a teacher classifies the test images as by guessing, or ``""``.

    Args:
        teacher: the network.
        images: shape of a batch.
        top1: its accuracy on the test images.
        guess: accuracy of guessing their most frequent class, from 0 to 1.
    """
    if not is_guess(top1.top1 / 100, top1.samples, guess):
        return ""
    where = f"on {top1.top1:.2f} % of the test images"
    return _guessing_teacher(where, describe_input(teacher, images))
