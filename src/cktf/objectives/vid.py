"""Variational information distillation as an objective: see `cktf.functional.vid`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import vid_loss
from cktf.functional.maps import pool_to_smaller
from cktf.objectives.base import BuildContext, Loss, Objective, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features

_EPSILON = 1e-5


class _Gaussian(nn.Module):
    """Predicts a teacher's map from a student's: a mean, and a variance for each channel."""

    def __init__(self, student_channels: int, teacher_channels: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        start = math.log(math.expm1(variance - _EPSILON))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), start))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = pool_to_smaller(student, teacher)
        return vid_loss(self.mean(student.float()), teacher, self.log_scale, _EPSILON)


class VID(Objective):
    """Predict the teacher's maps, and how uncertain that is, from the student's.

    `Σ_stages mean ½((μ − t)²/σ² + log σ²)`, with μ from three 1x1 convolutions of the student's map
    and σ² trained for each channel: a bound on mutual information.

    Args:
        student_channels, teacher_channels: of the maps, stage by stage.
        variance: σ² at the start.
    """

    title = "Variational information distillation"
    paper = "arXiv 1904.05835"
    requires = frozenset({"stages"})
    capturable = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        variance: float = 5.0,
    ) -> None:
        super().__init__()
        if variance <= _EPSILON:
            raise MethodError(f"VID's variance is above {_EPSILON}, given {variance}.")
        self.stages = nn.ModuleList(
            _Gaussian(s, t, variance)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks with stages."""
        students, teachers = stage_maps("VID", *context.both_features("VID"))
        return cls([m.shape[1] for m in students], [m.shape[1] for m in teachers], **options)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        maps = stage_maps("VID", student, teacher)
        parts = [stage(s, t) for stage, s, t in zip(self.stages, *maps, strict=True)]
        return single_term_loss("vid", torch.stack(parts).sum())
