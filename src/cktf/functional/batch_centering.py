"""Rows without the part that all samples of a batch share.

Maps after a ReLU are nowhere negative, so that the vectors of all samples point much the same way.
Where the loss acts on that common direction alone, in the first steps, it grows until rows hardly
differ: each is as near to another sample's as to its own. Subtracting the mean takes both the
direction and the gradient along it away. DINO centers its teacher's outputs likewise, by a running
mean (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv
2104.14294).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktf import _check
from cktf.processes import mean_over_processes, num_processes


class _Centered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows - mean_over_processes(rows.mean(-2, keepdim=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        # Centering is a projection and equals its own transpose.
        return grad_output - mean_over_processes(grad_output.mean(-2, keepdim=True))


def subtract_batch_mean(rows: Tensor) -> Tensor:
    """Subtract the mean over the batch of all processes from rows [..., B, D].

    Raises:
        ShapeError: a batch of one, whose centered row is zero.
    """
    if num_processes() == 1:
        _check.at_least_two("A centered head", rows.movedim(-2, 0))
    result: Tensor = _Centered.apply(rows)
    return result
