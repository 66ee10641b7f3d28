"""What every objective is: a weighted sum of terms over the features of two networks."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from cktf.batch import Batch
from cktf.contrast import Footprint
from cktf.errors import MethodError
from cktf.taps import CacheSpec, Features

T = TypeVar("T")

# What an objective may require of a batch, and not of the networks.
BATCH_FIELDS = frozenset({"labels", "index"})
# Constructor arguments that the training set decides.
_FROM_CONTEXT = frozenset({"labels", "config"})


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of.

    Attributes:
        total: scalar float32, to be minimized.
        terms: each part by name, before weighting, for the record.
    """

    total: Tensor
    terms: dict[str, Tensor]


def loss_of(name: str, value: Tensor) -> Loss:
    """The loss of an objective of one term."""
    return Loss(value, {name: value.detach()})


@dataclass(frozen=True)
class BuildContext:
    """What an objective is built for.

    Attributes:
        student: features of an example batch, of two or more images.
        teacher: the teacher's features of the same batch; None where there is no teacher.
        dataset_size: samples in the training set.
        labels: [dataset_size] int64 classes of the training set; None where there are none.
    """

    student: Features
    teacher: Features | None
    dataset_size: int
    labels: Tensor | None

    def both(self, method: str) -> tuple[Features, Features]:
        """Student's and teacher's features, for a method that compares them."""
        if self.teacher is None:
            raise MethodError(f"{method} transfers knowledge and needs a teacher; there is none.")
        return self.student, self.teacher


def present(value: T | None, what: str) -> T:
    """The value, or a message that says what an objective was not given."""
    if value is None:
        raise MethodError(
            f"{what} was not given. Run both networks, tapped with what the method needs."
        )
    return value


@dataclass(frozen=True)
class Phase:
    """What is trained before the student is trained on the sum; a stage of its own.

    Attributes:
        name: for the record.
        objective: what is minimized; its parameters train.
        lr: learning rate, which stays.
        trains_student: whether the student runs and trains; without, the teacher's features stand
            in the student's place.
        weight: of the loss.
    """

    name: str
    objective: "Objective"
    lr: float
    trains_student: bool = True
    weight: float = 1.0


class Objective(nn.Module, ABC):
    """Base of all objectives; a class is either abstract or final.

    An objective owns its adapters, heads and banks: `parameters()` train with the student, and
    `state_dict()` holds all that a resumed run needs. `forward` computes the loss of a batch, and
    `after_step` updates the memories from it: a step is skipped by not calling `after_step`.

    Attributes:
        title: the method's full name.
        paper: its source.
        default_weight: its weight in a sum, as published.
        weight_options: options that a weight in a method string sets besides.
        requires: names of the `Features` that it reads of both networks, and `labels` or `index`
            where it reads those of the batch.
        needs_teacher: whether the teacher runs at all.
        only_initializes: whether it is minimized in its phases, and no part of the sum after them.
        filling: whether `fill` wants a pass over the training set before training.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    default_weight: ClassVar[float] = 1.0
    weight_options: ClassVar[Mapping[str, Any]] = {}
    requires: frozenset[str] = frozenset()
    needs_teacher: bool = True
    only_initializes: bool = False
    filling: bool = False

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks and a training set.

        Raises:
            MethodError: the method does not fit them, or an option is out of its range.
        """
        return cls(**options)

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The method's options with their types and defaults."""
        return {
            name: parameter
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.default is not parameter.empty and name not in _FROM_CONTEXT
        }

    @classmethod
    def accepts_unlabeled(cls) -> bool:
        """Whether it works on images without labels."""
        return "labels" not in cls.requires and not cls.only_initializes

    @classmethod
    def first_phase(cls) -> str:
        """When it trains a phase before the sum: `yes`, by an option, or never (empty)."""
        if cls.phases is Objective.phases:
            return ""
        return "if staged" if "staged" in cls.options() else "yes"

    @property
    def features(self) -> frozenset[str]:
        """Names of the `Features` that the networks are tapped for."""
        return self.requires - BATCH_FIELDS | {"logits"}

    @abstractmethod
    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""

    def phases(self) -> list[Phase]:
        """What comes before training on the sum, in order."""
        return []

    def cacheable(self) -> CacheSpec:
        """What of the teacher's features is enough, for a cache of them on disk.

        Raises:
            MethodError: it reads whole maps, which take too much room.
        """
        maps = sorted(self.features - {"logits", "embedding"})
        if maps:
            raise MethodError(
                f"{type(self).__name__} reads whole maps of the teacher ({', '.join(maps)}), and a "
                "teacher cache holds logits, embeddings and averages of maps. Train without "
                "teacher_cache, or with methods that read no more: kd, cc, rkd, pkt, crd, and cktf "
                "with options.cktf.module_norm=none."
            )
        return CacheSpec(embedding="embedding" in self.features)

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, which are counted from 1; most objectives do not care."""

    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Take a batch into the memories, before training; without gradient."""

    def full_after(self, samples: int) -> bool:
        """Whether so many samples have filled the memories."""
        return True

    def footprint(self, batch: int) -> Footprint:
        """What it takes of memory for batches of a size, beside its parameters."""
        return Footprint()

    def after_step(self) -> None:
        """Update the memories from the last training batch, after the optimizer's step."""


class WeightedSum(Objective):
    """`Σ weight · term`; a term of weight 0 is not computed, nor one that only initializes.

    Args:
        terms: for each name a weight, at least 0, and an objective.

    Raises:
        MethodError: nothing to minimize, or a negative weight.
    """

    def __init__(self, terms: dict[str, tuple[float, Objective]]) -> None:
        super().__init__()
        kept = {name: pair for name, pair in terms.items() if pair[0] > 0}
        if not kept or any(weight < 0 for weight, _ in terms.values()):
            given = {name: weight for name, (weight, _) in terms.items()}
            raise MethodError(
                f"A sum has weights of 0 or more, and at least one above 0; given {given}."
            )
        self.terms = nn.ModuleDict({name: objective for name, (_, objective) in kept.items()})
        self._given = {name: weight for name, (weight, _) in kept.items()}
        summed = {name: pair for name, pair in kept.items() if not pair[1].only_initializes}
        if not summed:
            raise MethodError(
                f"{' and '.join(kept)} only initialize the student, and nothing is left to train "
                "it on: there are no labels. Add a method that needs none, such as cktf."
            )
        self.weights = {name: weight for name, (weight, _) in summed.items()}
        parts = [objective for _, objective in summed.values()]
        self.requires = frozenset().union(*(part.requires for part in parts))
        self.needs_teacher = any(part.needs_teacher for part in parts)
        self.filling = any(part.filling for part in parts)

    def phases(self) -> list[Phase]:
        """The phases of all terms; one on a term's own loss has the term's weight."""
        return [
            replace(phase, weight=self._given[name]) if phase.objective is term else phase
            for name, term in self.terms.items()
            for phase in cast(Objective, term).phases()
        ]

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The weighted total; parts of a term are named `term.part`."""
        total = torch.zeros((), device=student.logits.device)
        parts: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            loss: Loss = self.terms[name](student, teacher, batch)
            total = total + weight * loss.total
            parts[name] = loss.total.detach()
            if len(loss.terms) > 1:
                parts |= {f"{name}.{part}": value for part, value in loss.terms.items()}
        return Loss(total, parts)

    def describe(self) -> str:
        """List the weights: `1 ce + 1 cktf (beta 0.8, theta 0.1) + 1 kd`."""
        notes = {name: self.terms[name].extra_repr() for name in self.weights}
        return " + ".join(
            f"{weight:g} {name}{f' ({notes[name]})' if notes[name] else ''}"
            for name, weight in self.weights.items()
        )

    def cacheable(self) -> CacheSpec:
        """The features that suffice for all terms.

        Raises:
            MethodError: a term first trains on the teacher's whole maps.
        """
        found = CacheSpec()
        for term in self.terms.values():
            objective = cast(Objective, term)
            if objective.phases():
                raise MethodError(
                    f"{type(objective).__name__} has a first stage of its own on whole maps, which "
                    "a teacher cache does not hold. Train without teacher_cache."
                )
            found |= objective.cacheable()
        return found

    def begin_epoch(self, epoch: int) -> None:
        """Tell every term."""
        for part in self._parts():
            part.begin_epoch(epoch)

    def after_step(self) -> None:
        """Update the memories of every term."""
        for part in self._parts():
            part.after_step()

    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Take a batch into the memories that want it."""
        for part in self._parts():
            if part.filling:
                part.fill(student, teacher, batch)

    def full_after(self, samples: int) -> bool:
        """Whether so many samples have filled all memories."""
        return all(part.full_after(samples) for part in self._parts() if part.filling)

    def footprint(self, batch: int) -> Footprint:
        """All terms together."""
        return sum((part.footprint(batch) for part in self._parts()), Footprint())

    def _parts(self) -> list[Objective]:
        return [cast(Objective, self.terms[name]) for name in self.weights]
