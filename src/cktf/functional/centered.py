"""Rows without the part that all samples of a batch have in common.

Maps after a ReLU are nowhere negative, so that the vectors of all samples point much the same way.
Where the loss acts on that common direction alone, in the first steps, it grows until rows hardly
differ: each is as near to another sample's as to its own. Subtracting the mean takes both the
direction and the gradient along it away, as BatchNorm does in the heads of SimCLR (Chen et al.,
"A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktf.processes import averaged


class _Centered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows - averaged(rows.mean(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        # It is a projection, and its own transpose.
        return grad_output - averaged(grad_output.mean(0))


def centered(rows: Tensor) -> Tensor:
    """[B, D] less its mean over the batch of all processes."""
    found: Tensor = _Centered.apply(rows)
    return found
