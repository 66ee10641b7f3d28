"""Checks of mistakes that would train without an error, and wrongly."""

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.errors import DataError, ModelError
from cktf.models import Normalized, pack_extra_state
from cktf.taps import needs_contiguous_images
from cktf.workflows.components import RunComponents

# Resampling and noise leave [0, 1] by less than this; normalized images reach -1.
_OVERSHOOT = 0.5
# Images with a standard deviation of 0.05 or more stay below this when they are normalized.
_MAX_NORMALIZED = 20
# The brightest pixel of several images is brighter than this, unless [0, 1] was scaled again.
_MIN_BRIGHT = 1 / 128


def warn_if_normalized_twice(network: nn.Module, who: str, images: Tensor) -> str:
    """A warning if a network normalizes images that seem to be normalized already, or ``""``."""
    low, high = _value_range(images)
    in_range = low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT
    if in_range or not isinstance(network, Normalized) or not network.normalizes:
        return ""
    return (
        f"The {who} normalizes images from [0, 1] itself, and these run from {low:.1f} to "
        f"{high:.1f}. Leave normalizing out of the data set, or give the network inside, .network."
    )


def warn_if_ranges_differ(train: Tensor, test: Tensor) -> str:
    """A warning if the values of training and test images seem to be scaled unlike, or ``""``."""
    if _kind_of_range(train) == _kind_of_range(test):
        return ""
    (low, high), (test_low, test_high) = _value_range(train), _value_range(test)
    return (
        f"Training images run from {low:.3g} to {high:.3g}, and test images from {test_low:.3g} to "
        f"{test_high:.3g}. Scale and normalize both alike: the accuracy on the test images is "
        "wrong otherwise."
    )


def _value_range(images: Tensor) -> tuple[float, float]:
    return float(images.min()), float(images.max())


def _kind_of_range(images: Tensor) -> str:
    low, high = _value_range(images)
    if high > _MAX_NORMALIZED:
        return "bytes"
    if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
        return "normalized"
    return "scaled twice" if 0 < high < _MIN_BRIGHT else "scaled"


def warn_if_contiguous(network: nn.Module, who: str) -> str:
    """A note if a network runs on contiguous images only, or ``""``."""
    if not needs_contiguous_images(network):
        return ""
    return (
        f"The {who} fails on channels-last images, so its images and weights stay contiguous, as "
        "with runtime.channels_last=false. If that is slow, write reshape for view in its forward "
        "method."
    )


def check_student(components: RunComponents) -> None:
    """Raise ModelError if a student cannot be trained or saved, or shares its parameters."""
    name, teacher, student = components.student_name, components.teacher, components.student
    role, title = components.trained_role, components.trained_title
    inner = student.network if isinstance(student, Normalized) else student
    if isinstance(inner, torch.jit.ScriptModule):
        raise ModelError(
            f"The {title} is a TorchScript module, whose layers have no training mode and no "
            "hooks. Give the Python module that it was made from; a teacher of kd may be one."
        )
    pack_extra_state(student.state_dict())
    if not any(parameter.requires_grad for parameter in components.student.parameters()):
        raise ModelError(
            f"A {role} has parameters that are trained, and none of {name}'s requires a gradient. "
            "Call requires_grad_(True) on what is to be trained."
        )
    parameters = set(components.student.parameters())
    shared = parameters & set(() if teacher is None else teacher.parameters())
    if shared:
        raise ModelError(
            f"A student is trained and its teacher is not; {len(shared)} of the {len(parameters)} "
            f"parameters of {name} are the teacher's. Give a copy of it: copy.deepcopy(teacher)."
        )


def check_classes(num_classes: int, components: RunComponents) -> None:
    """Raise DataError unless a student has a logit for each class of the data."""
    classes = components.data.classes
    if classes is not None and len(classes) != num_classes:
        raise DataError(
            f"The {components.trained_title} gives {num_classes} logits, and the data has "
            f"{len(classes)} classes. Build it for {len(classes)}: a function in a file is called "
            "with num_classes if it takes that."
        )


def check_labels(split: str, labels: Tensor, num_classes: int) -> None:
    """Raise DataError unless labels [N] are class numbers from 0 to num_classes - 1."""
    low, high = int(labels.min()), int(labels.max())
    if 0 <= low <= high < num_classes:
        return
    if low < 0:
        advice = "Leave out images without a class, which labels below 0 often mark."
    elif low > 0 and high == num_classes:
        advice = "Number the classes from 0: subtract 1 from each label."
    elif len(set(labels.tolist())) <= num_classes:
        advice = "Number the classes from 0 without gaps, or build the network for more classes."
    else:
        advice = f"Give the network as many outputs as the data has classes, at least {high + 1}."
    raise DataError(
        f"The {split} labels run from {low} to {high}; a label is the number of its class, from 0 "
        f"to {num_classes - 1} for {num_classes} classes. {advice}"
    )


def check_stored_labels(stored_labels: Tensor, batch: Batch) -> None:
    """Raise DataError if the labels of samples differ from those stored with the data set.

    Cross-entropy reads the labels of samples; negatives and held-out images go by the stored ones,
    [N] int64, which are `targets` or `labels` of the data set.
    """
    if batch.labels is None:
        return
    stored, labels = stored_labels[batch.index.cpu()], batch.labels.cpu()
    if not torch.equal(stored, labels):
        at = int((stored != labels).nonzero()[0])
        raise DataError(
            f"Sample {int(batch.index[at])} has the label {int(labels[at])}, and by its `targets` "
            f"or `labels` the data set gives it {int(stored[at])}. Let these be the labels that "
            "samples have, or leave them out."
        )
