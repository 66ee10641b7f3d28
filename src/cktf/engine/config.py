"""Sections that configure training: recipes compose them, and the engine reads them."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from cktf.config import Section
from cktf.data.config import DataConfig, Name

Fraction = Annotated[float, Field(gt=0, lt=1)]
Precision = Literal["auto", "float32", "bfloat16"]
OnNonFinite = Literal["stop", "skip"]

# `multistep`: the papers' rate. `onecycle`: the best of 0.05, 0.1, 0.2 and 0.4 on images held out
# of CIFAR-10's training set, by less than one standard error.
_PEAK_LR = {"multistep": 0.05, "onecycle": 0.1}


class OptimizerConfig(Section):
    """Options of `torch.optim.SGD`, and gradient clipping.

    Attributes:
        lr: peak learning rate; by default 0.1 for `onecycle`, 0.05 for `multistep`.
        momentum, weight_decay, nesterov: as in `torch.optim.SGD`.
        clip: largest norm of the gradient; a longer gradient is scaled to it. None never clips.
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
        name: `onecycle`, for short runs, rises for 30 % of the steps and falls to zero along a
            cosine; `multistep`, as in the papers, multiplies the rate by `gamma` at each milestone.
        milestones: of `multistep`, as fractions of the run.
        gamma: factor of `multistep`.
    """

    name: Literal["onecycle", "multistep"] = "onecycle"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    gamma: float = Field(0.1, gt=0, le=1)


class RuntimeConfig(Section):
    """Device and precision of the networks; losses are computed in float32.

    Attributes:
        device: `cpu`, `cuda`, or `auto`: CUDA where PyTorch sees it, else the CPU, also on Apple
            silicon.
        precision: of the networks; `auto` is bfloat16 where the hardware multiplies it faster.
        channels_last: whether networks and images are in channels-last memory format.
        compile: whether `torch.compile` compiles both networks, which takes about a minute.
        deterministic: whether a GPU computes the same bits each time, which is slower; a CPU always
            does.
        graph: whether the training step is replayed as one CUDA graph: `auto`, wherever that is
            possible; `on`, or an error; or `off`.
        on_nonfinite: `stop` at a loss or gradient that is not finite, or `skip` and count the step.
        track: names of trackers that record the run, or `none`; by default TensorBoard where it is
            installed.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False
    deterministic: bool = False
    graph: Literal["auto", "on", "off"] = "auto"
    on_nonfinite: OnNonFinite = "stop"
    track: tuple[Name, ...] | None = None

    @field_validator("device", mode="before")
    @classmethod
    def _refuse_number(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("cuda:"):
            raise ValueError(
                "one of several GPUs is chosen by the environment, "
                f"CUDA_VISIBLE_DEVICES={value.removeprefix('cuda:')}, and the device is then cuda"
            )
        return value

    @field_validator("track", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        """Accept names joined by commas, as on the command line."""
        if not isinstance(value, str):
            return value
        return () if value == "none" else value.split(",")


class CheckpointConfig(Section):
    """How often a run saves a checkpoint, besides the one at the end of each phase.

    Attributes:
        epochs: epochs between two checkpoints; 0 saves none for this reason.
        minutes: minutes between two checkpoints, also inside an epoch; 0 saves none.
    """

    epochs: int = Field(0, ge=0)
    minutes: float = Field(5.0, ge=0)


class TrainingConfig(Section):
    """Base of all recipes: everything that the training loop reads.

    Attributes:
        epochs: passes over the training set in the main phase.
        earlier_epochs: numbers of epochs that the run was planned for before it was continued with
            `epochs`; cktf sets them.
        seed: random seed (weights, order, augmentation, negatives).
        data, optimizer, schedule, runtime, checkpoint: sections.
    """

    epochs: int = Field(30, ge=1)
    earlier_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
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
