"""The typed description of an experiment: all that decides its result, in one YAML file."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from cktf.config import rename_options
from cktf.data.config import DataConfig, Name
from cktf.engine.config import TrainingConfig

CUSTOM = "custom"
# The papers' initialization takes 30 of 240 epochs.
_INITIAL = 30 / 240


class TrainRecipe(TrainingConfig):
    """Train a network on labels alone.

    Attributes:
        model: the name of a network (see `cktf models`), or `custom` for a user's own object; or a
            run folder or weights file to train further, with a new classifier if its classes, by
            name or else in number, are not those of the data.
        trains: `all` of it, or the `classifier` alone, on frozen features and BatchNorm statistics.
        new_classifier: whether to replace the classifier of a run or file even if its classes are
            those of the data.
    """

    kind: Literal["train"] = "train"
    model: Name
    trains: Literal["all", "classifier"] = "all"
    new_classifier: bool = False


class _DistillFields(TrainingConfig):
    """Fields of a distillation, which a transfer has too.

    Attributes:
        teacher: a run folder, a weights file or a network, or `custom` for a user's own object.
        teacher_weights: a file of weights, for a teacher that is the name of a network.
        student: a network: see `cktf.models.sources`; or `custom`.
        student_taps, teacher_taps: paths of the modules whose outputs are the network's stages; by
            default they are inferred.
        student_embedding, teacher_embedding: path of the module whose output the classifier reads,
            or `head:input` for the input of module `head`; by default it is inferred.
        method: names joined by `+`, each with an optional weight; or a preset: see `cktf methods`.
        options: for a method in the string, its options: `cktf: {negatives: 4096}`.
        student_size, teacher_size: side in pixels to which the network resizes its images; by
            default its own size, or none. Both get the same augmented images.
        teacher_cache: a folder for the teacher's features of a finite set of views, or `auto` for
            one in the user's cache; by default none.
        init_epochs: epochs of each initialization phase, for methods that have one; by default an
            eighth of `epochs`, which is the papers' 30 of 240.
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

    @field_validator("method")
    @classmethod
    def _lower_method(cls, method: str) -> str:
        return method.lower()

    @field_validator("options")
    @classmethod
    def _rename_options(cls, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {method.lower(): rename_options(values) for method, values in options.items()}

    @model_validator(mode="after")
    def _initial(self) -> Self:
        if self.init_epochs is None:
            self.init_epochs = max(1, round(_INITIAL * self.epochs))
        return self


class DistillRecipe(_DistillFields):
    """Train a student from a teacher."""

    kind: Literal["distill"] = "distill"


class TransferRecipe(_DistillFields):
    """Distill on images without labels, then fit linear probes on few labels.

    Attributes:
        data: the images without labels.
        labeled: the labeled images and the test images; by default those of the data set in `data`.
        labels_per_class: numbers of labels of each class, each a point of a curve; the student's
            accuracy is that at the largest. Empty for one point with all labels.
        draws: random draws of labels at each point.
        scratch_epochs: epochs of the student that is trained from scratch on the labels alone; by
            default about as many steps as the distillation takes, and at most 200 epochs.
    """

    kind: Literal["transfer"] = "transfer"
    method: Name = "paper/transfer"
    labeled: DataConfig = DataConfig()
    labels_per_class: tuple[Annotated[int, Field(ge=1)], ...] = ()
    draws: int = Field(5, ge=1)
    scratch_epochs: int | None = Field(None, ge=1)

    def distill_recipe(self) -> DistillRecipe:
        """Return the recipe of the distillation."""
        shared = {name: getattr(self, name) for name in _DistillFields.model_fields}
        return DistillRecipe(**shared)


Recipe = TrainRecipe | DistillRecipe
