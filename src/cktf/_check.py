"""Argument checks whose messages name the rule, what was given and what to try."""

import torch
from torch import Tensor

from cktf.errors import ShapeError


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def same_batch(method: str, student: Tensor, teacher: Tensor) -> None:
    """Both tensors have a batch axis of the same length."""
    if student.dim() < 1 or teacher.dim() < 1 or len(student) != len(teacher):
        raise ShapeError(
            f"{method} needs one batch for both networks: student {_shape(student)}, teacher "
            f"{_shape(teacher)}. Tap both on the same images."
        )


def vectors(method: str, tensor: Tensor, name: str) -> None:
    """`tensor` is a floating-point matrix, one row per sample."""
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise ShapeError(
            f"{method} needs {name} as floating-point rows [batch, dim], given {_shape(tensor)} of "
            f"{tensor.dtype}. Flatten a map first, for example with .flatten(1)."
        )


def rows_of_one_length(anchor: Tensor, bank: Tensor) -> None:
    """Anchors and bank rows can be multiplied."""
    vectors("The contrastive loss", anchor, "anchor")
    vectors("The contrastive loss", bank, "bank")
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
            f"{method} needs the same classes from both networks: student {_shape(student)}, "
            f"teacher {_shape(teacher)}. Give the student as many outputs as the teacher has."
        )


def indices(method: str, index: Tensor, batch: int, size: int) -> None:
    """`index` holds a position below `size` for each sample of the batch.

    The range is checked where that costs no synchronisation, on the CPU.
    """
    if index.dtype != torch.int64 or index.dim() != 1 or len(index) != batch:
        raise ShapeError(
            f"{method} needs each sample's position in the training set as int64 [{batch}], given "
            f"{_shape(index)} of {index.dtype}."
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
