"""What could be trained without an error, and would be wrong."""

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.errors import DataError, ModelError
from cktf.models import Normalized
from cktf.workflows.components import RunComponents

# Of resampled or noisy images beyond [0, 1]; normalized ones reach -1.
_OVERSHOOT = 0.5


def warn_if_normalized_twice(network: nn.Module, who: str, images: Tensor) -> str:
    """What looks wrong where a network normalizes images that seem to be normalized already."""
    low, high = float(images.min()), float(images.max())
    inside = low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT
    if inside or not isinstance(network, Normalized) or not network.normalizes:
        return ""
    return (
        f"The {who} normalizes images from [0, 1] itself, and these run from {low:.1f} to "
        f"{high:.1f}. Leave normalizing out of the data set, or give the network inside, .network."
    )


def check_student(components: RunComponents) -> None:
    """Raise ModelError where nothing of a student is trained, or some of it is its teacher's."""
    name = components.student_name
    if not any(parameter.requires_grad for parameter in components.student.parameters()):
        raise ModelError(
            f"A student has parameters that are trained, and none of {name}'s requires a gradient. "
            "Call requires_grad_(True) on what is to be trained."
        )
    own = set(components.student.parameters())
    shared = own & set(() if components.teacher is None else components.teacher.parameters())
    if shared:
        raise ModelError(
            f"A student is trained and its teacher is not; {len(shared)} of the {len(own)} "
            f"parameters of {name} are the teacher's. Give a copy of it: copy.deepcopy(teacher)."
        )


def check_classes(num_classes: int, components: RunComponents) -> None:
    """Raise DataError unless a student has a logit for each of the data's classes."""
    classes = components.data.classes
    if classes is not None and len(classes) != num_classes:
        raise DataError(
            f"The student {components.student_name} gives {num_classes} logits, and the data has "
            f"{len(classes)} classes. Build it for {len(classes)}: a function in a file is called "
            "with num_classes if it takes that."
        )


def check_labels(split: str, labels: Tensor, num_classes: int) -> None:
    """Raise DataError unless labels [N] are of so many classes."""
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < num_classes:
        raise DataError(
            f"The {split} labels run from {low} to {high}, and the student has {num_classes} "
            f"classes: a label is from 0 to {num_classes - 1}. Give the student as many outputs as "
            "the data has classes."
        )


def check_stated(labels: Tensor, batch: Batch) -> None:
    """Raise DataError where samples of a batch have other labels than those of the whole set [N].

    Cross-entropy goes by the ones, and negatives and held-out images by the others.
    """
    if batch.labels is None:
        return
    stated, own = labels[batch.index.cpu()], batch.labels.cpu()
    if not torch.equal(stated, own):
        at = int((stated != own).nonzero()[0])
        raise DataError(
            f"Sample {int(batch.index[at])} has the label {int(own[at])}, and by its `targets` or "
            f"`labels` the data set gives it {int(stated[at])}. Let these be the labels that "
            "samples have, or leave them out."
        )
