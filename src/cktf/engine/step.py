"""The training step as a module, the phases of a run, and the learning rate schedule."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from cktf.batch import Batch
from cktf.engine.config import OptimizerConfig, ScheduleConfig
from cktf.engine.runtime import Runtime
from cktf.errors import TrainingError
from cktf.objectives import Loss, Objective
from cktf.taps import Features, Tap, TeacherTap

MAIN = "train"


class TrainStep(nn.Module):
    """The forward pass of a training step: both networks, then the loss between their features.

    Its parameters are those that train: the student's and the objective's. The teacher is frozen
    and not a submodule.

    Args:
        objective: the loss to minimize; its own parameters train too.
        student_tap: tap of the student; None where only the objective trains.
        teacher_tap: tap of the teacher; None for an objective that needs no teacher.
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

    def forward(self, batch: Batch, teacher: Features | None = None) -> Loss:
        """Compute the loss of a batch; adapters compute in the networks' precision.

        Args:
            batch: of images.
            teacher: its features of them, where they are known already.

        Raises:
            TrainingError: the loss has no gradient.
        """
        with self.runtime.autocast():
            loss: Loss = self.objective(*self.features(batch, teacher), batch)
        if torch.is_grad_enabled() and not loss.total.requires_grad:
            raise TrainingError(
                "The loss has no gradient any more, and had one in the first step. Let "
                "forward and requires_grad of the network that trains be the same in every step."
            )
        return loss

    def features(
        self, batch: Batch, teacher: Features | None = None
    ) -> tuple[Features, Features | None]:
        """Extract the features of the student, and those of the teacher without gradient.

        In a phase that trains no student, the teacher's features stand in for the student's.
        """
        if self.teacher_tap is not None and teacher is None:
            with torch.no_grad():
                teacher = self.teacher_tap.extract(batch)
        student = teacher if self.student_tap is None else self.student_tap(batch.images)
        assert student is not None
        return student, teacher

    def features_outside_graph(self, batch: Batch) -> Features | None:
        """The teacher's features, where they come from a cache or another student's pass."""
        if self.teacher_tap is None or isinstance(self.teacher_tap, Tap):
            return None
        with torch.no_grad(), self.runtime.autocast():
            return self.teacher_tap.extract(batch)

    def forward_buffers(self) -> list[tuple[nn.Module, str, Tensor]]:
        """List the buffers that a forward pass changes, to restore them after a skipped step.

        Memories are not among them: they change in `Objective.after_step`, after the optimizer.
        """
        norms = [module for module in self.objective.modules() if isinstance(module, _NormBase)]
        student = [] if self.student is None else list(self.student.modules())
        return [
            (module, name, buffer)
            for module in (*student, *norms)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def train(self, mode: bool = True) -> "TrainStep":
        """Set the training mode, except for frozen BatchNorm statistics.

        They are those of the whole student with `freeze_statistics`, and otherwise those of
        BatchNorm layers whose parameters are all frozen.
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
    """A part of a run that has its own objective and optimizer.

    Attributes:
        name: `train` for the main phase, which comes last and trains the student on the whole sum.
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


def save_buffers(step: TrainStep) -> Callable[[], None]:
    """Copy the buffers that a step's forward pass changes; return a function that restores them."""
    saved = [(*entry, entry[2].clone()) for entry in step.forward_buffers()]

    @torch.no_grad()
    def restore() -> None:
        for module, name, buffer, before in saved:
            # Observers of quantization-aware training replace their buffers, or resize them.
            module._buffers[name] = buffer
            if buffer.shape == before.shape:
                buffer.copy_(before)
            else:
                buffer.data = before

    return restore


@contextmanager
def preserve_buffers(step: TrainStep) -> Iterator[None]:
    """Restore the buffers that a step's forward pass changes on exit."""
    restore = save_buffers(step)
    try:
        yield
    finally:
        restore()


def build_optimizer(
    parameters: Sequence[Tensor], config: OptimizerConfig, lr: float, device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimizer of a phase."""
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        # One kernel for all parameters, which reads its rate from the device in a CUDA graph.
        fused=device.type == "cuda" or None,
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig | None, lr: float, steps: int
) -> LRScheduler:
    """Build the learning rate schedule of a phase of `steps` steps with the peak rate `lr`.

    Without a configuration, as in an initialization phase, the rate is constant.
    """
    if config is None:
        return ConstantLR(optimizer, factor=1.0)
    if config.name == "onecycle":
        return OneCycleLR(optimizer, lr, total_steps=steps, cycle_momentum=False)
    return MultiStepLR(optimizer, [round(f * steps) for f in config.milestones], config.gamma)


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    checkpoint: Mapping[str, Any],
    is_rescheduled: bool,
) -> None:
    """Load the optimizer and the schedule of a phase from a checkpoint.

    If it is rescheduled, the optimizer's state goes on at the same step of the new `scheduler`.
    """
    state = checkpoint["optimizer"]
    # The checkpoint may come from another device.
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved["fused"] = group["fused"]
    if not is_rescheduled:
        optimizer.load_state_dict(state)
        scheduler.load_state_dict(checkpoint["scheduler"])
        return
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    # PyTorch would warn of a schedule that moves on without the optimizer.
    optimizer._opt_called = True  # type: ignore[attr-defined]
    for _ in range(checkpoint["scheduler"]["last_epoch"]):
        scheduler.step()
