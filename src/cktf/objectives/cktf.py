"""CKTF: a contrastive objective at the stem, at every module and at the penultimate layer.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, arXiv 2303.07599, equations 1 to 6:

    L = β · L_penultimate + θ · Σ_{stem, modules} L_k

where every L is a CRD objective with its own heads and banks, and all share one draw of negatives
per batch. How a map becomes a vector is in `cktf.functional.module_vector`.

Departures: networks of unequal depth, width or resolution are paired too; those of CRD.
"""

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cktf.batch import Batch
from cktf.contrast import Bank, ContrastOptions, Draw, Footprint, Memory
from cktf.errors import MethodError, nearest
from cktf.functional.maps import paired
from cktf.functional.module_vector import ModuleNorm, module_grid, module_vector
from cktf.objectives.base import Loss, Objective, Setting, present
from cktf.objectives.crd import CRD
from cktf.processes import agreed, summed
from cktf.taps import Features, Kept

# Below it, a product of squared norms is that of maps of zeros.
_SMALLEST = 1e-16

Match = Literal["last", "first", "random", "smallest", "largest"]


class CKTF(Objective):
    """Pick the teacher's representation of a sample among others', at every depth of the network.

    At the stem, at every module and at the penultimate layer the student's representation of a
    sample must tell the teacher's of the same sample from those of thousands of others, and the
    other way round: a bound on their mutual information.

    Args:
        student, teacher: features of one example batch: their shapes size the heads.
        dataset_size: N, samples in the training set.
        beta: weight of the penultimate layer's objective.
        theta: weight of the stem's and of every module's objective.
        match: which of the teacher's blocks a student's module is paired with: the `last` of the
            stage, the `first`, a `random` one, or the one whose maps have the `smallest` or
            `largest` cosine similarity with the student's over the whole batch.
        module_norm: `batch` (as published), `sample` or `none`: see `module_vector`.
        labels: [N] classes: negatives come from other classes; without, from all other samples.
        contrast: options of `cktf.objectives.CRD`, the same for all pairs.

    Attributes:
        pairs: CRD objectives in the order stem, module 1…n, embedding.

    Raises:
        MethodError: a network without stages, or an option out of its range.
    """

    def __init__(
        self,
        student: Features,
        teacher: Features,
        dataset_size: int,
        *,
        beta: float = 0.8,
        theta: float = 0.1,
        match: Match = "last",
        module_norm: ModuleNorm = "batch",
        labels: Tensor | None = None,
        **contrast: Unpack[ContrastOptions],
    ) -> None:
        super().__init__()
        _check_options(beta, theta, match, module_norm)
        self.beta, self.theta, self.match, self.module_norm = beta, theta, match, module_norm
        self.needs = needs_of(match)
        vectors = self._vectors(student, teacher)
        self._kept = Kept(
            embedding=True,
            stem=module_grid(_shape(student.stem), _shape(teacher.stem)),
            stages=_grids(student.stages, teacher.stages),
        )
        # The first pair makes the memory, and all share it: one draw serves them all.
        source: Memory | None = None
        self.pairs = nn.ModuleList()
        for s, t in vectors:
            pair = CRD(
                s.shape[1], t.shape[1], dataset_size,
                labels=labels, source=source, sharing=len(vectors), **contrast,
            )  # fmt: skip
            source = pair.memory
            self.pairs.append(pair)
        self.filling = pair.filling

    def loss(
        self,
        student: Features,
        teacher: Features,
        index: Tensor,
        contrast_index: Tensor | None = None,
    ) -> Loss:
        """Loss of one batch; the banks are updated.

        Args:
            student: its features of a batch of images.
            teacher: its features of the same images.
            index: [B] int64, positions in the training set.
            contrast_index: [B, 1+K] int64 bank rows, column 0 the positive; drawn when None.

        Returns:
            The weighted total, and the terms `stem`, `module1`…, `embedding` before weighting.
        """
        draw = self._draw(index, contrast_index)
        total = torch.zeros((), device=index.device)
        terms: dict[str, Tensor] = {}
        for (name, weight), pair, (s, t) in zip(
            self._weights().items(), self._pairs(), self._vectors(student, teacher), strict=True
        ):
            if weight:
                loss = pair.loss(s, t, index, draw=draw)
                total = total + weight * loss
                terms[name] = loss.detach()
        return Loss(total, terms)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return self.loss(student, present(teacher, "CKTF's teacher"), batch.index)

    def kept(self) -> Kept:
        """The averages of maps that the heads read, as long as nothing reads the maps before."""
        if self.match != "last" or self.module_norm != "none":
            raise MethodError(
                f"CKTF with match={self.match}, module_norm={self.module_norm} reads the teacher's "
                "whole maps before it averages them, and a teacher cache holds averages. Train "
                "without teacher_cache, or with options.cktf.match=last and "
                "options.cktf.module_norm=none."
            )
        return self._kept

    def begin_epoch(self, epoch: int) -> None:
        """Tell every pair."""
        for pair in self._pairs():
            pair.begin_epoch(epoch)

    @torch.no_grad()
    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Put a batch's rows into the memories of all pairs."""
        vectors = self._vectors(student, present(teacher, "CKTF's teacher"))
        draw = self._draw(batch.index)
        for pair, (s, t) in zip(self._pairs(), vectors, strict=True):
            pair.fill_rows(s, t, draw)

    def full_after(self, samples: int) -> bool:
        """Whether so many samples have filled the memory."""
        return self._pairs()[0].full_after(samples)

    def footprint(self, batch: int) -> Footprint:
        """All pairs together."""
        return sum((pair.footprint(batch) for pair in self._pairs()), Footprint())

    def _pairs(self) -> list[CRD]:
        return [cast(CRD, pair) for pair in self.pairs]

    def _draw(self, index: Tensor, contrast_index: Tensor | None = None) -> Draw:
        if contrast_index is not None:
            return Bank.given(contrast_index, index)
        return self._pairs()[0].memory.draw(index)

    def _weights(self) -> dict[str, float]:
        """Each pair's name and weight, in order."""
        modules = [f"module{k}" for k in range(1, len(self.pairs) - 1)]
        return dict.fromkeys(["stem", *modules], self.theta) | {"embedding": self.beta}

    def _vectors(self, student: Features, teacher: Features) -> list[tuple[Tensor, Tensor]]:
        """What each pair's heads read, in the order of `pairs`."""
        stem = _stem_vectors(present(student.stem, "A stem"), present(teacher.stem, "A stem"))
        embeddings = (
            present(student.embedding, "An embedding"),
            present(teacher.embedding, "An embedding"),
        )
        modules = [self._module(s, candidates) for s, candidates in self._stages(student, teacher)]
        return [stem, *modules, embeddings]

    def _stages(
        self, student: Features, teacher: Features
    ) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Each student stage's map with the teacher's maps that it may be matched with.

        Of the network with more stages, those at even distances are used, the last among them.
        """
        blocks = teacher.blocks if "blocks" in self.needs else tuple((m,) for m in teacher.stages)
        if teacher.stages and not blocks:
            raise MethodError(
                f"match={self.match} chooses among the blocks of the teacher's stages, and they "
                "are not known. Give them in its taps, or set match=last."
            )
        if not (student.stages and blocks):
            raise MethodError("CKTF compares stages, and one of the networks has none.")
        return paired(student.stages, blocks)

    def _module(self, student: Tensor, candidates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        teacher = self._choose(student.detach(), candidates).detach()
        # Of one size whichever is chosen: the heads are as wide as the widest.
        grid = module_grid(student.shape, candidates[-1].shape)
        channels = max(m.shape[1] for m in (student, *candidates))
        return (
            module_vector(student, channels, grid, self.module_norm),
            module_vector(teacher, channels, grid, self.module_norm),
        )

    def _choose(self, student: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        if self.match == "last" or len(candidates) == 1:
            return candidates[-1]
        if self.match == "first":
            return candidates[0]
        if self.match == "random":
            drawn = torch.randint(len(candidates), (), device=student.device)
            return candidates[int(agreed(drawn))]
        cosines = [_cosine(student, c) for c in candidates]
        chosen = torch.stack(cosines)
        return candidates[int(chosen.argmin() if self.match == "smallest" else chosen.argmax())]


def _shape(stem: Tensor | None) -> torch.Size:
    return present(stem, "A stem").shape


def _grids(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Which of the teacher's stages are compared, and the grid that each is averaged to."""
    places = paired(range(len(student)), range(len(teacher)))
    return tuple((t, module_grid(student[s].shape, teacher[t].shape)) for s, t in places)


def needs_of(match: str) -> frozenset[str]:
    """The features that CKTF reads with a kind of matching."""
    maps = {"stages"} if match == "last" else {"stages", "blocks"}
    return frozenset({"logits", "embedding", "stem"} | maps)


def _stem_vectors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    grid = module_grid(student.shape, teacher.shape)
    return (
        module_vector(student, student.shape[1], grid, "none"),
        module_vector(teacher.detach(), teacher.shape[1], grid, "none"),
    )


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine of two whole batches of maps, of all processes, the smaller fitted to the other."""
    grid = [min(s, t) for s, t in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
    channels = max(student.shape[1], teacher.shape[1])
    s, t = (
        module_vector(m, channels, (grid[0], grid[1]), "batch").flatten()
        for m in (student, teacher)
    )
    product, own, other = summed(torch.stack([s @ t, s @ s, t @ t])).unbind()
    return product * (own * other).clamp_min(_SMALLEST).rsqrt()


def _check_options(beta: float, theta: float, match: str, module_norm: str) -> None:
    if beta < 0 or theta < 0 or not beta + theta:
        raise MethodError(
            f"CKTF's weights are 0 or more, and one is above 0: beta {beta}, theta {theta}."
        )
    for name, value, known in (
        ("match", match, get_args(Match)),
        ("module_norm", module_norm, get_args(ModuleNorm)),
    ):
        if value not in known:
            raise MethodError(f"CKTF knows no {name} {value!r}. {nearest(value, known)}")


def build(setting: Setting, **options: Any) -> CKTF:
    """CKTF between the two networks of a setting."""
    student, teacher = setting.both("CKTF")
    return CKTF(student, teacher, setting.dataset_size, labels=setting.labels, **options)
