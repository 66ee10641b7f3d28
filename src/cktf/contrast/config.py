"""The options of a contrastive objective: their defaults, ranges, and which go together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from typing_extensions import Self

from cktf.config import rename_options
from cktf.contrast.bank import DEVICE, HOST, Storage
from cktf.errors import MethodError, nearest
from cktf.functional.critics import MIN_TEMPERATURE

Estimator = Literal["sampled", "all", "shared"]
_ESTIMATORS: dict[str, tuple[Estimator, ...]] = {
    "bank": ("sampled", "all", "shared"),
    "queue": ("all", "shared"),
    "batch": ("all",),
}


class ContrastConfig(BaseModel):
    """Options of a contrastive objective.

    Attributes:
        embedding_dim: length of the rows that are compared.
        negatives: K, negatives for each anchor.
        temperature: τ, by which the products of unit rows are divided. The paper takes 0.1 on
            CIFAR-100 and 0.07 on Tiny-ImageNet and STL-10.
        momentum: fraction of its old row that a sample keeps at each visit, in a bank.
        memory: `bank`, a row per sample (the paper); `queue`, the last rows, for any N; `batch`,
            the other samples of the batch.
        queue_size: M, rows of a queue.
        estimator: `sampled` draws K negatives for each anchor (the paper); `all` takes the exact
            expectation over every row; `shared` draws K rows for the whole batch. None is `shared`
            for a bank of more than K rows and `all` otherwise.
        critic: `nce` (the paper), with a normalizer that the first batch fixes; or `infonce`.
        storage: type of the rows. `bfloat16` takes half the memory, and products are faster where
            the hardware multiplies it.
        bank_device: of a bank: on the `device`, in `host` memory, or a folder in which it is a
            mapped file; the last two with `shared`.
        init: rows at the start: `random` (the paper), or from a `forward` pass over the training
            set.
        renormalize: epochs at whose first batch the normalizers are set again.
        center: subtract the batch's mean from what a head gives, before rows get unit length: then
            no direction that all samples share can take the rows over.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # No footprint counts the heads, which are as long.
    embedding_dim: int = Field(128, ge=1, le=65_536)
    negatives: int = Field(16384, ge=1)
    temperature: float = Field(0.1, ge=MIN_TEMPERATURE)
    momentum: float = Field(0.5, ge=0, le=1)
    memory: Literal["bank", "queue", "batch"] = "bank"
    queue_size: int = Field(16384, ge=2)
    estimator: Estimator | None = None
    critic: Literal["nce", "infonce"] = "nce"
    storage: Storage = "float32"
    bank_device: str = DEVICE
    init: Literal["random", "forward"] = "random"
    renormalize: tuple[Annotated[int, Field(ge=1)], ...] = ()
    center: bool = False

    @field_validator("bank_device")
    @classmethod
    def _check_bank_device(cls, value: str) -> str:
        if value not in (DEVICE, HOST) and not Path(value).is_dir():
            raise ValueError("it is device, host or a folder")
        return value

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        estimators = _ESTIMATORS[self.memory]
        if self.estimator is not None and self.estimator not in estimators:
            raise ValueError(
                f"memory={self.memory} goes with estimator={' or '.join(estimators)}, given "
                f"{self.estimator!r}: its rows are a sample of the training set already"
            )
        combination = self.memory, self.estimator or "shared"
        if self.bank_device != DEVICE and combination != ("bank", "shared"):
            with_estimator = "" if self.estimator is None else f" with {self.estimator}"
            fix = "" if self.memory == "bank" else "memory=bank and "
            raise ValueError(
                f"bank_device={self.bank_device} is for memory=bank with estimator=shared, which "
                f"moves K rows a step; given {self.memory}{with_estimator}. Set "
                f"{fix}estimator=shared, or leave bank_device out"
            )
        return self

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Check options and fill in the defaults.

        Raises:
            MethodError: an unknown option, one out of its range, or options that exclude each
                other.
        """
        try:
            return cls(**rename_options(options))
        except ValidationError as error:
            problems = "; ".join(map(_explain, error.errors()))
            raise MethodError(f"Options of a contrastive objective: {problems}.") from error

    def num_rows(self, dataset_size: int) -> int:
        """Rows of each bank for a training set of N samples."""
        return {"bank": dataset_size, "queue": self.queue_size, "batch": 0}[self.memory]

    def chosen_estimator(self, dataset_size: int) -> Estimator:
        """The estimator, or where none is named the cheaper one: `shared` or `all`."""
        if self.estimator is not None:
            return self.estimator
        # K draws of no more than K rows would cost more than all of them.
        draws = self.memory == "bank" and (
            dataset_size > self.negatives or self.bank_device != DEVICE
        )
        return "shared" if draws else "all"


def _explain(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"there is no option {name!r}. {nearest(name, ContrastConfig.model_fields)}"
    return f"{name}: {message}, given {detail['input']!r}"
