"""The base of all objectives, and their weighted sum."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from cktf.batch import Batch
from cktf.contrast import Footprint
from cktf.errors import MethodError
from cktf.objectives.pairs import embeddings, stage_maps
from cktf.taps import CacheSpec, Features

# Requirements that a batch meets, and not the networks.
BATCH_FIELDS = frozenset({"labels", "index"})
# Constructor arguments that the training set decides.
_FROM_CONTEXT = frozenset({"labels", "config"})


@dataclass(frozen=True)
class Loss:
    """A loss and its terms.

    Attributes:
        total: scalar float32, to be minimized.
        terms: each term by name, before weighting, for the record.
    """

    total: Tensor
    terms: dict[str, Tensor]


def single_term_loss(name: str, value: Tensor) -> Loss:
    """The loss of an objective of one term."""
    return Loss(value, {name: value.detach()})


@dataclass(frozen=True)
class BuildContext:
    """The networks and the training set that an objective is built for.

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

    def both_features(self, method: str) -> tuple[Features, Features]:
        """Features of student and teacher; MethodError where there is no teacher."""
        if self.teacher is None:
            raise MethodError(f"{method} transfers knowledge and needs a teacher; there is none.")
        return self.student, self.teacher


@dataclass(frozen=True)
class Phase:
    """A phase of training before the student is trained on the sum.

    Attributes:
        name: for the record.
        objective: what is minimized; its parameters train.
        lr: learning rate, constant.
        trains_student: whether the student runs and trains; else the objective reads the teacher's
            features as the student's too.
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
        fill_samples: training samples that `fill` takes before training; 0 where it takes none.
        capturable: whether a CUDA graph may replay it: from step to step nothing changes but
            tensors, in place, and it neither draws on the CPU nor reads a value back.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    default_weight: ClassVar[float] = 1.0
    weight_options: ClassVar[Mapping[str, Any]] = {}
    requires: frozenset[str] = frozenset()
    needs_teacher: bool = True
    only_initializes: bool = False
    fill_samples: int = 0
    capturable: bool = False

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks and a training set.

        The default takes no arguments from them, and checks that they have the stages and the
        embedding that the method requires.

        Raises:
            MethodError: the method does not fit them, or an option is out of its range.
        """
        if cls.needs_teacher:
            networks = context.both_features(cls.__name__)
            if "stages" in cls.requires:
                stage_maps(cls.__name__, *networks)
            if "embedding" in cls.requires:
                embeddings(cls.__name__, *networks)
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
        """Initialization phases before training on the sum, in order."""
        return []

    def cacheable(self) -> CacheSpec:
        """The teacher's features that a cache on disk has to hold.

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

    def sub_objectives(self) -> Sequence["Objective"]:
        """Objectives that this one is computed from."""
        return []

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch; epochs are counted from 1."""
        for part in self.sub_objectives():
            part.begin_epoch(epoch)

    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Write a batch into the memories, before training; without gradient."""

    def footprint(self, batch: int) -> Footprint:
        """Memory for batches of a size, besides the parameters."""
        return sum((part.footprint(batch) for part in self.sub_objectives()), Footprint())

    def uninformed_terms(self, batch: int) -> dict[str, float]:
        """Losses of features that tell no image from another, by term, for batches of a size.

        Only of terms for which that is known.
        """
        return {}

    def after_step(self) -> None:
        """Update the memories from the last training batch, after the optimizer's step."""
        for part in self.sub_objectives():
            part.after_step()


class WeightedSum(Objective):
    """`Σ weight · term`, without terms of weight 0 and terms that only initialize.

    Args:
        terms: for each name a weight, at least 0, and an objective.

    Raises:
        MethodError: nothing to minimize, or a negative weight.
    """

    def __init__(self, terms: dict[str, tuple[float, Objective]]) -> None:
        super().__init__()
        weights = {name: weight for name, (weight, _) in terms.items()}
        if not any(weights.values()) or min(weights.values()) < 0:
            raise MethodError(
                f"A sum has weights of 0 or more, and at least one above 0; given {weights}."
            )
        self.terms = nn.ModuleDict({n: objective for n, (w, objective) in terms.items() if w})
        self._phase_weights = weights
        self.weights = {
            name: weight
            for name, weight in weights.items()
            if weight and not terms[name][1].only_initializes
        }
        if not self.weights:
            raise MethodError(
                f"{' and '.join(self.terms)} only initialize the student, and nothing is left to "
                "train it on: there are no labels. Add a method that needs none, such as cktf."
            )
        parts = self.sub_objectives()
        self.requires = frozenset().union(*(part.requires for part in parts))
        self.needs_teacher = any(part.needs_teacher for part in parts)
        self.fill_samples = max(part.fill_samples for part in parts)
        self.capturable = all(part.capturable for part in parts)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each term with `torch.compile`."""
        for part in self.sub_objectives():
            part.compile(*args, **kwargs)

    def phases(self) -> list[Phase]:
        """The phases of all terms; one on a term's own loss has the term's weight."""
        return [
            replace(phase, weight=self._phase_weights[name]) if phase.objective is term else phase
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

    def uninformed_terms(self, batch: int) -> dict[str, float]:
        """Those of all terms, named as in `forward`."""
        return {
            name if part == name else f"{name}.{part}": value
            for name in self.weights
            for part, value in cast(Objective, self.terms[name]).uninformed_terms(batch).items()
        }

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
        spec = CacheSpec()
        for term in self.terms.values():
            objective = cast(Objective, term)
            if objective.phases():
                raise MethodError(
                    f"{type(objective).__name__} has a first phase on whole maps, which a "
                    "teacher cache does not hold. Train without teacher_cache."
                )
            spec |= objective.cacheable()
        return spec

    def sub_objectives(self) -> list[Objective]:
        """The terms that are summed."""
        return [cast(Objective, self.terms[name]) for name in self.weights]

    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Write a batch into the memories that are filled before training."""
        for part in self.sub_objectives():
            if part.fill_samples:
                part.fill(student, teacher, batch)
