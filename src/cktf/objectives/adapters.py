"""Layers that bring a student's map to its teacher's shape; they train with the student.

The rules are those of the published results: a convolution that halves the size, a transposed one
that doubles it, or one whose kernel takes up the difference. Departure: a difference that no small
kernel takes up is averaged away on the larger side.
"""

import torch
from torch import Tensor, nn

from cktf.functional.maps import pool_to_smaller

# The largest kernel that takes up a difference of sizes.
_MAX_KERNEL = 7


class Regressor(nn.Module):
    """From a student's map to the shape of its teacher's.

    Args:
        student, teacher: shapes [B, C, H, W] of the two maps.
        relu: end with a ReLU, for maps that ended with one.
    """

    def __init__(self, student: torch.Size, teacher: torch.Size, *, relu: bool) -> None:
        super().__init__()
        channels = student[1], teacher[1]
        size, target = tuple(student[2:]), tuple(teacher[2:])
        kernel = 1 + size[0] - target[0], 1 + size[1] - target[1]
        self.pools = False
        # BatchNorm follows and cancels a bias.
        if size == tuple(2 * side for side in target):
            layer: nn.Module = nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False)
        elif target == tuple(2 * side for side in size):
            layer = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=False)
        elif min(kernel) >= 1 and max(kernel) <= _MAX_KERNEL:
            layer = nn.Conv2d(*channels, kernel, bias=False)
        else:
            layer = nn.Conv2d(*channels, 1, bias=False)
            self.pools = True
        activation = [nn.ReLU()] if relu else []
        self.layers = nn.Sequential(layer, nn.BatchNorm2d(teacher[1]), *activation)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps in one shape."""
        if self.pools:
            student, teacher = pool_to_smaller(student, teacher)
        # Maps may be in half precision; autocast chooses the precision of the layers.
        return self.layers(student.float()), teacher
