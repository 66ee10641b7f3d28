"""All labels of a data set, without reading its samples where labels are stored beside them."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from cktf.data.samples import label_of_sample, original_position, read_sample


def get_labels(data: Any) -> Tensor:
    """Get all labels of a data set, [N] int64.

    They come from its attribute `targets` or `labels`, through a `Subset`, `ConcatDataset` or
    `TensorDataset`; a data set without such an attribute is read sample by sample.

    Raises:
        DataError: a sample that is not a pair of image and label, or a label that is not the number
            of a class.
    """
    if (stored := _stored_labels(data)) is not None:
        return stored
    labels = [
        label_of_sample(read_sample(data, position), original_position(data, position))
        for position in range(len(data))
    ]
    return torch.tensor(labels, device="cpu")


def has_stored_labels(data: Any) -> bool:
    """Whether `get_labels` needs to read no sample of a data set."""
    return _stored_labels(data) is not None


def _stored_labels(data: Any) -> Tensor | None:
    """Labels [N] int64 that are stored beside the samples; None where they are not."""
    if isinstance(data, Subset) and (labels := _stored_labels(data.dataset)) is not None:
        return labels[torch.as_tensor(data.indices, device="cpu")]
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return _to_class_numbers(data.tensors[1].cpu())
    if (labels := _labels_attribute(data)) is not None:
        return labels
    if isinstance(data, ConcatDataset):
        parts = [_stored_labels(part) for part in data.datasets]
        if all(labels is not None for labels in parts):
            return torch.cat([labels for labels in parts if labels is not None])
    return None


def _labels_attribute(data: Any) -> Tensor | None:
    # A target_transform of torchvision changes the labels of samples but not `targets`.
    if getattr(data, "target_transform", None) is not None:
        return None
    for name in ("labels", "targets"):
        values = getattr(data, name, None)
        # The attribute may be anything, such as a method or the names of classes.
        with suppress(ValueError, TypeError, RuntimeError):
            if values is not None and not isinstance(values, str) and len(values) == len(data):
                labels = torch.as_tensor(values, device="cpu")
                if labels.dim() == 1 and not labels.is_floating_point():
                    return labels.long()
    return None


def _to_class_numbers(values: Tensor) -> Tensor | None:
    """Convert whole numbers [N] or [N, 1] to int64 [N]; None for other tensors."""
    if values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    numbers = values.long()
    is_whole = values.dim() == 1 and torch.equal(numbers.to(values.dtype), values)
    return numbers if is_whole else None
