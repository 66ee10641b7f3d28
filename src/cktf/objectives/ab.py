"""Activation boundaries as an objective: see `cktf.functional.ab`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import ab_loss
from cktf.objectives.adapters import Regressor
from cktf.objectives.base import BuildContext, Loss, Objective, Phase, single_term_loss
from cktf.objectives.pairs import stage_maps
from cktf.taps import Features


class AB(Objective):
    """Switch the same units on and off as the teacher; an initialization of the student.

    A squared hinge of the student's pre-activations against the signs of the teacher's:
    `Σ_k 2^{k−n} · 3/(1000·B) · Σ (s+m)²·[s > −m, t ≤ 0] + (s−m)²·[s ≤ m, t > 0]`.

    Args:
        student, teacher: shapes [B, C, H, W] of the maps before activation, stage by stage.
        margin: m, how far beyond the boundary a unit is left alone.
        init_lr: learning rate of the initialization.
    """

    title = "Activation boundaries"
    paper = "arXiv 1811.03233"
    requires = frozenset({"preacts"})
    capturable = True
    only_initializes = True

    def __init__(
        self,
        student: Sequence[torch.Size],
        teacher: Sequence[torch.Size],
        margin: float = 1.0,
        init_lr: float = 0.05,
    ) -> None:
        super().__init__()
        if margin <= 0:
            raise MethodError(f"AB's margin is above 0, given {margin}; 1 is usual.")
        self.margin, self.init_lr = margin, init_lr
        # A map that has the teacher's shape needs no connector.
        self.connectors = nn.ModuleList(
            nn.Identity() if s == t else Regressor(s, t, relu=False)
            for s, t in zip(student, teacher, strict=True)
        )

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks whose pre-activations are known."""
        students, teachers = stage_maps("AB", *context.both_features("AB"), "preacts")
        return cls([m.shape for m in students], [m.shape for m in teachers], **options)

    def phases(self) -> list[Phase]:
        """The student's layers and the connectors, on this loss alone."""
        return [Phase("ab", self, self.init_lr)]

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        maps = stage_maps("AB", student, teacher, "preacts")
        pairs = [
            c(s, t) if isinstance(c, Regressor) else (s, t)
            for c, s, t in zip(self.connectors, *maps, strict=True)
        ]
        return single_term_loss(
            "ab", ab_loss([s for s, _ in pairs], [t for _, t in pairs], self.margin)
        )
