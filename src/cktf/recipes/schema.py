"""The typed description of an experiment: all that decides its result, in one YAML file."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from cktf.contrast import rename_options
from cktf.data.config import DataConfig, Name
from cktf.engine.config import TrainingConfig

CUSTOM = "custom"
# The papers' initialization takes 30 of 240 epochs.
_INITIAL = 30 / 240


class TrainRecipe(TrainingConfig):
    """Train a network on labels alone.

    Attributes:
        model: a network: see `cktf.models.sources`; a run folder or a file of weights, to go on
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


class _Distilling(TrainingConfig):
    """What a student from a teacher takes.

    Attributes:
        teacher: a run folder, a weights file or a network, or `custom` for a user's own object.
        teacher_weights: a file of weights, for a teacher that is a network.
        student: a network: see `cktf.models.sources`; or `custom`.
        student_taps, teacher_taps: paths of the modules whose outputs are the network's stages,
            where those that are found are not what is meant.
        student_embedding, teacher_embedding: likewise of the vector that the classifier reads;
            `head:input` is what module `head` is given.
        method: names joined by `+`, each with an optional weight; or a preset: see `cktf methods`.
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
    student_taps: list[str] = Field([])
    teacher_taps: list[str] = Field([])
    student_embedding: str | None = None
    teacher_embedding: str | None = None
    method: Name = "cktf+kd"
    options: dict[str, dict[str, Any]] = Field({})
    student_size: int | None = Field(None, ge=8)
    teacher_size: int | None = Field(None, ge=8)
    teacher_cache: str | None = None
    init_epochs: int | None = Field(None, ge=1)

    @field_validator("options")
    @classmethod
    def _rename_options(cls, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {method: rename_options(values) for method, values in options.items()}

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
    method: Name = "paper/transfer"
    labeled: DataConfig = DataConfig()
    labels_per_class: tuple[Annotated[int, Field(ge=1)], ...] = ()
    draws: int = Field(5, ge=1)
    scratch_epochs: int | None = Field(None, ge=1)

    def distilling(self) -> DistillRecipe:
        """The recipe of its first part."""
        shared = {name: getattr(self, name) for name in _Distilling.model_fields}
        return DistillRecipe(**shared)


Recipe = TrainRecipe | DistillRecipe
