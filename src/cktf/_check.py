"""Argument checks; their messages state the rule, the values and what to try."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cktf.errors import ShapeError


def same_batch(method: str, student: Tensor, teacher: Tensor) -> None:
    """Both tensors have a batch axis of the same length."""
    if student.dim() < 1 or teacher.dim() < 1 or len(student) != len(teacher):
        raise ShapeError(
            f"{method} needs one batch for both networks: student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}. Tap both on the same images."
        )


def vectors(method: str, tensor: Tensor, name: str) -> None:
    """`tensor` is a floating-point matrix, one row per sample."""
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ShapeError(
            f"{method} needs {name} as floating-point rows [batch, dim], given "
            f"{tuple(tensor.shape)} of {tensor.dtype}. Flatten a map first, as with .flatten(1)."
        )


def same_embedding_dim(anchor: Tensor, bank: Tensor) -> None:
    """Anchors and bank rows can be multiplied."""
    vectors("The contrastive loss", anchor, "anchor")
    vectors("The contrastive loss", bank, "bank")
    if bank.dtype == torch.float16:
        raise ShapeError(
            "The contrastive loss needs a bank in float32 or bfloat16, given float16, whose range "
            "exp(1/τ) leaves. Use bank.bfloat16()."
        )
    if anchor.shape[1] != bank.shape[1]:
        raise ShapeError(
            f"Anchor and bank need rows of one length: anchor {tuple(anchor.shape)}, bank "
            f"{tuple(bank.shape)}. Pass both through heads of the same embedding_dim."
        )


def paired_logits(method: str, student: Tensor, teacher: Tensor) -> None:
    """Logits of one batch over the same classes."""
    vectors(method, student, "student_logits")
    vectors(method, teacher, "teacher_logits")
    same_batch(method, student, teacher)
    if student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f"{method} needs the same classes from both networks: student {tuple(student.shape)}, "
            f"teacher {tuple(teacher.shape)}. Give the student as many outputs as the teacher has."
        )


def indices(method: str, index: Tensor, batch: int, size: int) -> None:
    """`index` holds a position below `size` for each sample of the batch.

    The range is checked where that costs no synchronization, on the CPU.
    """
    if index.dtype != torch.int64 or index.dim() != 1 or len(index) != batch:
        raise ShapeError(
            f"{method} needs each sample's position in the training set as int64 [{batch}], given "
            f"{tuple(index.shape)} of {index.dtype}."
        )
    if (
        index.device.type == "cpu"
        and batch
        and not 0 <= int(index.min()) <= int(index.max()) < size
    ):
        raise ShapeError(
            f"{method} keeps one row for each of {size} training samples, given positions "
            f"{int(index.min())} to {int(index.max())}. Set dataset_size to the length of the "
            "training set."
        )


def paired_vectors(method: str, student: Tensor, teacher: Tensor) -> None:
    """Rows of one batch from both networks, of any lengths."""
    vectors(method, student, "student_embedding")
    vectors(method, teacher, "teacher_embedding")
    same_batch(method, student, teacher)


def equal_vectors(method: str, student: Tensor, teacher: Tensor) -> None:
    """Rows of one batch from both networks, of one length."""
    paired_vectors(method, student, teacher)
    if student.shape != teacher.shape:
        raise ShapeError(
            f"{method} needs rows of one length: student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}. Pass both through linear layers of one output size first."
        )


def at_least_two(method: str, student: Tensor) -> None:
    """A batch of two or more."""
    if len(student) < 2:
        raise ShapeError(
            f"{method} compares the samples of a batch and needs two or more, given {len(student)}."
        )


def paired_maps(
    method: str, student: Sequence[Tensor], teacher: Sequence[Tensor], *, equal: bool = False
) -> None:
    """As many maps [B, C, H, W] of one batch from both networks; with `equal` of equal shapes."""
    if not student or len(student) != len(teacher):
        raise ShapeError(
            f"{method} needs as many maps from both networks, and at least one: student "
            f"{len(student)}, teacher {len(teacher)}."
        )
    for s, t in zip(student, teacher, strict=True):
        _map(method, s, "student")
        _map(method, t, "teacher")
        if equal:
            equal_maps(method, s, t)
        if len({len(s), len(t), len(student[0])}) > 1:
            same_batch(method, student[0], s)
            same_batch(method, s, t)


def equal_maps(method: str, student: Tensor, teacher: Tensor) -> None:
    """Two maps [B, C, H, W] of the same shape."""
    _map(method, student, "student")
    _map(method, teacher, "teacher")
    same_batch(method, student, teacher)
    if student.shape != teacher.shape:
        raise ShapeError(
            f"{method} needs maps of one shape: student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}. Pass the student's through an adapter first."
        )


def _map(method: str, tensor: Tensor, network: str) -> None:
    if tensor.dim() != 4 or not tensor.is_floating_point():
        raise ShapeError(
            f"{method} needs the {network}'s map as floating-point [batch, channels, height, "
            f"width], given {tuple(tensor.shape)} of {tensor.dtype}."
        )


def contrast_index(index: Tensor, batch: int, size: int) -> None:
    """`contrast_index` is [batch, 1+K] rows of `size`, with a positive and negatives.

    The range is checked where that costs no synchronization, on the CPU.
    """
    values = f"given {tuple(index.shape)} of {index.dtype}"
    if index.dtype != torch.int64 or index.dim() != 2 or len(index) != batch:
        raise ShapeError(
            f"contrast_index is int64 [batch, 1+K] for a batch of {batch}, {values}. Its first "
            "column is each sample's own row."
        )
    if index.shape[1] < 2:
        raise ShapeError(
            f"Contrast needs a positive and at least one negative: K >= 1, {values}. Draw more "
            "rows."
        )
    if index.device.type == "cpu" and batch:
        low, high = map(int, index.aminmax())
        if not 0 <= low <= high < size:
            raise ShapeError(
                f"contrast_index names rows of a bank of {size}, given {low} to {high}. Draw from "
                "the training set's positions."
            )
