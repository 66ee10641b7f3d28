"""Settings of training: what the engine takes, and recipes are composed of."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from cktf.config import Section
from cktf.data.config import DataConfig, Name

Fraction = Annotated[float, Field(gt=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16"]
OnNonFinite = Literal["stop", "skip"]

# The papers' rate for their schedule; for a short cycle the best of 0.05, 0.1, 0.2 and 0.4 by less
# than a standard error, on images held out of CIFAR-10's training set.
_PEAK_LR = {"multistep": 0.05, "onecycle": 0.1}


class OptimizerConfig(Section):
    """SGD.

    Attributes:
        lr: peak learning rate; by default 0.1 for `onecycle`, 0.05 for `multistep`.
        momentum, weight_decay, nesterov: as in `torch.optim.SGD`.
        clip: largest norm of the gradient, to which a longer one is scaled; None leaves it.
    """

    lr: float | None = Field(None, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ScheduleConfig(Section):
    """The learning rate over the steps of a run.

    Attributes:
        name: `onecycle` (up for 30 % of the steps, then down to zero by a cosine, for short runs)
            or `multistep` (times `gamma` at each milestone, as in the papers).
        milestones: fractions of the run at which `multistep` steps.
        gamma: factor by which `multistep` changes the rate.
    """

    name: Literal["onecycle", "multistep"] = "onecycle"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    gamma: float = Field(0.1, gt=0, le=1)


class RuntimeConfig(Section):
    """Where, in which precision and how the networks compute; losses are formed in float32.

    Attributes:
        device: `cpu`, `cuda`, or `auto`: CUDA where PyTorch sees it, else the CPU, also on Apple
            silicon.
        precision: of the networks; `auto` is bfloat16 where the hardware multiplies it faster.
        channels_last: memory format of the networks and images.
        compile: run both networks through `torch.compile`, which first takes a minute.
        on_nonfinite: `stop` at a loss or gradient that is not finite, or `skip` and count the step.
        track: trackers that show a run while it goes on, or `none`; by default TensorBoard where it
            is installed.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False
    on_nonfinite: OnNonFinite = "stop"
    track: tuple[Name, ...] | None = None

    @field_validator("track", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Accept names joined by commas, as on the command line."""
        if not isinstance(value, str):
            return value
        return () if value == "none" else value.split(",")


class CheckpointConfig(Section):
    """How often a run saves itself; the end of each phase is saved in any case.

    Attributes:
        epochs: save after every so many epochs; 0 for never.
        minutes: and whenever so much time has passed, also inside an epoch; 0 for never.
    """

    epochs: int = Field(0, ge=0)
    minutes: float = Field(5.0, ge=0)


class TrainingConfig(Section):
    """Everything that the training loop reads; recipes add networks and methods.

    Attributes:
        epochs: passes over the training set in the main phase.
        seed: random seed (weights, order, augmentation, negatives).
        data, optimizer, schedule, runtime, checkpoint: sections.
    """

    epochs: int = Field(30, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _default_lr(self) -> Self:
        if self.optimizer.lr is None:
            self.optimizer = self.optimizer.model_copy(update={"lr": _PEAK_LR[self.schedule.name]})
        return self
