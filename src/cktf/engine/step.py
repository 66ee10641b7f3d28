"""One training step as a module, the phases of a run, and the learning rate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from cktf.batch import Batch
from cktf.engine.config import ScheduleConfig
from cktf.engine.runtime import Runtime
from cktf.objectives import Loss, Objective
from cktf.taps import Features, Tap, TeacherTap

MAIN = "train"


class TrainStep(nn.Module):
    """The forward pass of a training step: both networks, then the loss between their features.

    Its parameters are those that train: the student's and the objective's. The teacher is frozen
    and no submodule.

    Args:
        objective: what is minimized; its own parameters train too.
        student_tap: the tapped network that trains; None where only the objective trains.
        teacher_tap: the tapped frozen network; None for an objective that needs none.
        runtime: device and precision of the networks.
        freeze_statistics: keep the whole student in eval mode, BatchNorm statistics included.
    """

    def __init__(
        self,
        objective: Objective,
        student_tap: Tap | None,
        teacher_tap: TeacherTap | None,
        runtime: Runtime,
        *,
        freeze_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.student = None if student_tap is None else student_tap.model
        self.objective = objective
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.runtime, self.freeze_statistics = runtime, freeze_statistics

    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch; adapters compute in the networks' precision."""
        with self.runtime.autocast():
            return self.loss(*self.features(batch), batch)

    def features(self, batch: Batch) -> tuple[Features, Features | None]:
        """Features of the student and of the teacher, the latter without gradient."""
        teacher = None
        if self.teacher_tap is not None:
            with torch.no_grad():
                teacher = self.teacher_tap.extract(batch)
        student = teacher if self.student_tap is None else self.student_tap(batch.images)
        assert student is not None
        return student, teacher

    def loss(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The objective's loss between features of a batch."""
        return self.objective(student, teacher, batch)  # type: ignore[no-any-return]

    def forward_buffers(self) -> list[Tensor]:
        """Buffers that a forward pass changes, to restore where its step is skipped.

        Memories change in `Objective.after_step`, which a skipped step does not reach.
        """
        norms = (module for module in self.objective.modules() if isinstance(module, _NormBase))
        student = [] if self.student is None else list(self.student.buffers())
        return [*student, *(buffer for norm in norms for buffer in norm.buffers())]

    def train(self, mode: bool = True) -> "TrainStep":
        """Set the training mode, except for what keeps its statistics.

        That is the whole student with `freeze_statistics`, and else BatchNorm layers whose
        parameters are all frozen.
        """
        super().train(mode)
        if self.student is not None and mode:
            self.student.train(not self.freeze_statistics)
            for module in self.student.modules():
                parameters = list(module.parameters()) if isinstance(module, _BatchNorm) else []
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
        return self


@dataclass(frozen=True)
class TrainPhase:
    """A part of a run with an objective and an optimizer of its own.

    Attributes:
        name: `train` for the main phase, the last, in which the student trains on the whole sum.
        step: forward pass of a step.
        epochs: passes over the training set.
        lr: constant learning rate of an initialization phase; None follows the schedule.
        weight: factor of the loss.
    """

    name: str
    step: TrainStep
    epochs: int
    lr: float | None = None
    weight: float = 1.0


@contextmanager
def preserve_buffers(network: nn.Module) -> Iterator[None]:
    """Restore a network's buffers, such as BatchNorm statistics, on exit."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig | None, lr: float, steps: int
) -> LRScheduler:
    """The learning rate over the steps of a phase.

    Args:
        optimizer: its rate is scheduled.
        config: which schedule; None for a constant rate, as of an initialization phase.
        lr: its peak.
        steps: of the whole phase.
    """
    if config is None:
        return ConstantLR(optimizer, factor=1.0)
    if config.name == "onecycle":
        return OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    return MultiStepLR(optimizer, [round(f * steps) for f in config.milestones], config.gamma)
