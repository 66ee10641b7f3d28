"""The typed description of an experiment: all that decides its result, in one YAML file."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from cktf.data import resolve_dataset_name
from cktf.engine import OnNonFinite, Training

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
CUSTOM = "custom"
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class DataSection(_Section):
    """Which images, and how they are fed.

    Attributes:
        name: a data set of the library, or `custom` for a user's own.
        dir: its folder, where it needs one.
        test: another data set, of the same classes, for the test images; by default its own.
        augment: crop and flip training images; a user's own data set augments itself.
        batch_size: images per step; 2 or more, since BatchNorm and contrast compare images.
        resized_crops: augment by random parts of 8 to 100 % of an image's area, scaled to its size,
            as of data sets that do not fit in memory; images are then read batch by batch.
        views: augmentations of each image, the same in every run, which epochs take in turn; 0 for
            new ones in every epoch.
        workers: processes that load a user's own data set, or a named one that is too large for
            memory.
        image_size: pixels of a side; by default the data set's own, and for folders of images of
            many sizes what suits those to train on.
        channels: 3, or 1 for gray images.
        skip_broken: leave out images that cannot be read, in place of stopping.
        labels: whether labels are read; without there is no cross-entropy, and no accuracy.
        classes: names of those that are kept, in that order; empty for all.
        per_class: so many training images of each class, drawn by seed; None for all.
        validation: fraction of each class held out of the training images; the weights of the epoch
            that is best on these are kept.
    """

    name: Name = "fashion-mini"
    dir: str | None = None
    test: Name | None = None
    augment: bool = True
    resized_crops: bool = False
    views: int = Field(0, ge=0)
    batch_size: int = Field(64, ge=2)
    workers: int = Field(0, ge=0, le=1024)
    image_size: int | None = Field(None, ge=8, le=1024)
    channels: Literal[1, 3] = 3
    skip_broken: bool = False
    labels: bool = True
    classes: list[str] = []
    per_class: int | None = Field(None, ge=1)
    validation: float = Field(0.0, ge=0, lt=1)

    @field_validator("name", "test")
    @classmethod
    def _absolute(cls, name: str | None) -> str | None:
        """A folder in the name means the same wherever the recipe is read."""
        return None if name is None else resolve_dataset_name(name)


class OptimizerSection(_Section):
    """SGD. `lr` is the schedule's peak; by default 0.1 for `onecycle`, 0.05 for `multistep`.

    A gradient longer than `clip` is shortened to it.
    """

    lr: float | None = Field(None, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    clip: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "OptimizerSection":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ScheduleSection(_Section):
    """`onecycle` for short runs, `multistep` as in the papers (milestones as parts of the run)."""

    name: Literal["onecycle", "multistep"] = "onecycle"
    milestones: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    gamma: float = Field(0.1, gt=0, le=1)


class RuntimeSection(_Section):
    """Where, in which precision and how the networks compute; losses are formed in float32.

    `device: auto` is CUDA where PyTorch sees it, else the CPU, on Apple silicon too. With `compile`
    both networks are trained through `torch.compile`, which first takes a minute. At a loss or
    gradient that is not finite a run stops, or with `on_nonfinite: skip` leaves that step out and
    counts it. `track` names trackers that show a run while it goes on, or is `none`; by default it
    is TensorBoard where that is installed.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    on_nonfinite: OnNonFinite = "stop"
    track: tuple[Name, ...] | None = None

    @field_validator("track", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        """Names joined by commas, as on the command line."""
        if not isinstance(given, str):
            return given
        return () if given == "none" else given.split(",")


class CheckpointSection(_Section):
    """How often a run saves itself: whenever so many minutes have passed, and after so many epochs.

    0 is never by the clock, or by epochs. The end of each stage is saved in any case.
    """

    epochs: int = Field(0, ge=0)
    minutes: float = Field(5.0, ge=0)


# The papers' rate for their schedule; for a short cycle the best of 0.05, 0.1, 0.2 and 0.4 by less
# than a standard error, on images held out of CIFAR-10's training set.
_PEAK = {"multistep": 0.05, "onecycle": 0.1}
# The papers' initialization takes 30 of 240 epochs.
_INITIAL = 30 / 240


class _Recipe(_Section):
    epochs: int = Field(30, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataSection = DataSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    runtime: RuntimeSection = RuntimeSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _defaults(self) -> Self:
        if self.optimizer.lr is None:
            self.optimizer = self.optimizer.model_copy(update={"lr": _PEAK[self.schedule.name]})
        return self

    def training(self) -> Training:
        """What the engine is told."""
        return Training(
            epochs=self.epochs,
            lr=self.optimizer.lr or _PEAK[self.schedule.name],
            momentum=self.optimizer.momentum,
            weight_decay=self.optimizer.weight_decay,
            nesterov=self.optimizer.nesterov,
            clip=self.optimizer.clip,
            schedule=self.schedule.name,
            milestones=self.schedule.milestones,
            gamma=self.schedule.gamma,
            seed=self.seed,
            precision=self.runtime.precision,
            channels_last=self.runtime.channels_last,
            device=self.runtime.device,
            on_nonfinite=self.runtime.on_nonfinite,
            checkpoint_epochs=self.checkpoint.epochs,
            checkpoint_minutes=self.checkpoint.minutes,
        )


class TrainRecipe(_Recipe):
    """Train a network on labels alone.

    Attributes:
        model: a network: see `cktf.models.network_spec`; a run folder or a weights file, to go on
            from with a new classifier where its classes are others, or other in number where it
            does not name them; or `custom` for a user's own object.
        trains: `all` of it, or the `classifier` alone, on features that stay as they are, the
            statistics of BatchNorm included.
        new_classifier: whether the classifier of a run or file is new where its classes are the
            same too, as a probe of its features asks.
    """

    kind: Literal["train"] = "train"
    model: Name
    trains: Literal["all", "classifier"] = "all"
    new_classifier: bool = False


class _Distilling(_Recipe):
    """What a student from a teacher takes.

    Attributes:
        teacher: a run folder, a weights file or a network, or `custom` for a user's own object.
        teacher_weights: a file of weights, for a teacher that is a network.
        student: a network: see `cktf.models.network_spec`; or `custom`.
        student_taps, teacher_taps: paths of the modules whose outputs are the network's stages,
            where those that are found are not what is meant.
        student_embedding, teacher_embedding: likewise of the vector that the classifier reads;
            `head:input` is what module `head` is given.
        method: names joined by `+`, each with an optional weight.
        options: for a method in the string, its options: `cktf: {negatives: 4096}`.
        student_size, teacher_size: pixels of a side that images are resized to before the network
            sees them; by default its own, or as they come. Both see the same augmented images.
        teacher_cache: a folder for the teacher's features of a finite set of views, or `auto` for
            one in the user's cache; by default none.
        init_epochs: of each initialization stage, for methods that have one; by default an eighth
            of `epochs`, which is the papers' 30 of 240.
    """

    teacher: Name
    teacher_weights: str | None = None
    student: Name
    student_taps: list[str] = []
    teacher_taps: list[str] = []
    student_embedding: str | None = None
    teacher_embedding: str | None = None
    method: Name = "cktf+kd"
    options: dict[str, dict[str, Any]] = {}
    student_size: int | None = Field(None, ge=8)
    teacher_size: int | None = Field(None, ge=8)
    teacher_cache: str | None = None
    init_epochs: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _initial(self) -> Self:
        if self.init_epochs is None:
            self.init_epochs = max(1, round(_INITIAL * self.epochs))
        return self


class DistillRecipe(_Distilling):
    """Train a student from a teacher; the fields are those of its base."""

    kind: Literal["distill"] = "distill"


class TransferRecipe(_Distilling):
    """A student from a teacher on images without labels, then linear probes on few labels.

    Attributes:
        data: the images without labels.
        labeled: images with labels, those for the test among them; by default those of `data`.
        labels_per_class: how many labels each probe has; the largest number counts in the end.
            Empty for one probe, on all labels.
        draws: random choices of so many labels, over which a mean and its spread are taken.
        scratch_epochs: of the student that is trained on the labels alone; by default so many that
            it takes as many steps as the transfer, but at most 200.
    """

    kind: Literal["transfer"] = "transfer"
    method: Name = "cktf"
    labeled: DataSection = DataSection()
    labels_per_class: tuple[Annotated[int, Field(ge=1)], ...] = ()
    draws: int = Field(5, ge=1)
    scratch_epochs: int | None = Field(None, ge=1)

    def distilling(self) -> DistillRecipe:
        """The recipe of its first part."""
        shared = {name: getattr(self, name) for name in _Distilling.model_fields}
        return DistillRecipe(**shared)


Recipe = TrainRecipe | DistillRecipe
