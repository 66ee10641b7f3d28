"""One stage of a run, and how its learning rate goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from cktf.engine.settings import Training
from cktf.objectives import Objective
from cktf.taps import Tap, TeacherTap

MAIN = "train"


@dataclass(frozen=True)
class Stage:
    """One stage of a run: an objective, and the networks tapped for it.

    Attributes:
        name: `train` for the last, in which the student is trained on the whole sum.
        objective: what is minimized; its own parameters train too.
        student: the tapped network that is trained; None where only the objective trains.
        teacher: the tapped frozen network; None for an objective that needs none.
        epochs: passes over the training set.
        lr: learning rate of a stage before the last, which stays; None follows the schedule.
        weight: of the loss.
        keeps_statistics: the student stays in eval mode: its BatchNorm statistics do not change.
    """

    name: str
    objective: Objective
    student: Tap | None
    teacher: TeacherTap | None
    epochs: int
    lr: float | None = None
    weight: float = 1.0
    keeps_statistics: bool = False

    def set_modes(self) -> None:
        """Put the student in training mode, but for what is to keep its statistics.

        That is the whole of it where the stage says so, and BatchNorm whose parameters are frozen.
        """
        if self.student is None:
            return
        network = self.student.model.train(not self.keeps_statistics)
        for module in network.modules():
            own = list(module.parameters()) if isinstance(module, _BatchNorm) else []
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Afterwards a network's buffers are as they were before, whatever ended it."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int) -> LRScheduler:
    """The learning rate, step by step."""
    total = training.epochs * steps
    if training.schedule == "onecycle":
        return OneCycleLR(optimizer, training.lr, total_steps=total, cycle_momentum=False)
    at = [round(fraction * total) for fraction in training.milestones]
    return MultiStepLR(optimizer, at, training.gamma)
