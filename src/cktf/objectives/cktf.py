"""CKTF: a contrastive objective at the stem, at every module and at the penultimate layer.

Source: Zhao, Chen, Zhao, "A Contrastive Knowledge Transfer Framework for Model Compression and
Transfer Learning", ICASSP 2023, arXiv 2303.07599, equations 1 to 6:

    L = β · L_penultimate + θ · Σ_{stem, modules} L_k

where every L is a CRD objective with its own heads and banks, and all share one draw of negatives
per batch. How a map becomes a vector is in `cktf.functional.module_vector`.

Departures: networks of unequal depth, width or resolution are paired too; those of CRD.
"""

import math
from collections.abc import Callable
from inspect import Parameter
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from typing_extensions import Self

from cktf import _check
from cktf.batch import Batch
from cktf.config import rename_options
from cktf.contrast import ContrastConfig, Footprint, footprint
from cktf.errors import MethodError, nearest
from cktf.functional.maps import pair_stages
from cktf.functional.module_vector import (
    EPSILON,
    ModuleNorm,
    module_vector,
    pooled_grid_size,
    pooled_map,
)
from cktf.functional.precision import full_precision
from cktf.objectives.base import BuildContext, Loss, Objective
from cktf.objectives.crd import CRD, PairGroup, pair_losses, store_rows
from cktf.objectives.pairs import embeddings, require_not_none
from cktf.processes import broadcast_first, num_processes, sum_over_processes
from cktf.taps import CacheSpec, Features

# A smaller product of squared norms comes from maps of zeros.
_MIN_PRODUCT = 1e-16

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
        config: options of contrast, the same for all pairs.
        options: fields of `cktf.contrast.ContrastConfig`, over those of `config`.

    Attributes:
        pairs: CRD objectives in the order stem, module 1…n, embedding.
        pair_names: name of the term of each.

    Raises:
        MethodError: a network without stages, or an option out of its range.
    """

    title = "Contrastive knowledge transfer framework"
    paper = "arXiv 2303.07599"
    weight_options: ClassVar = {"beta": 1.0, "theta": 1.0}
    requires = frozenset({"stem", "stages", "blocks", "embedding", "index"})

    pair_weights: Tensor

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
        config: ContrastConfig | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        _check_options(beta, theta, match, module_norm)
        self.beta, self.theta, self.match, self.module_norm = beta, theta, match, module_norm
        maps = {"stem", "stages"} if match == "last" else {"stem", "stages", "blocks"}
        self.requires = frozenset(
            {"index"} | (maps if theta else set()) | ({"embedding"} if beta else set())
        )
        self._pool_globally = student.pool_globally and teacher.pool_globally
        self.compute_vectors = self._vectors
        vectors = self._vectors(student, teacher)
        self._cache_spec = CacheSpec(embedding=beta > 0) | (
            self._map_spec(student, teacher) if theta else CacheSpec()
        )
        config = ContrastConfig.from_options(dict(config or {}) | rename_options(options))
        # All pairs share the memory, so that one draw serves them all.
        group = PairGroup(config, dataset_size, labels, len(vectors))
        self.pairs = nn.ModuleList(
            CRD(*_head_sizes(*both), dataset_size, config=config, group=group, position=i)
            for i, both in enumerate(vectors.values())
        )
        self.pair_names = tuple(vectors)
        self.fill_samples = self.sub_objectives()[0].fill_samples
        # A random match is drawn on the CPU.
        self.capturable = match != "random" and self.sub_objectives()[0].capturable
        weights = torch.tensor([beta if name == "embedding" else theta for name in vectors])
        self.register_buffer("pair_weights", weights, persistent=False)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile vectors and heads with `torch.compile`."""
        self.compute_vectors = torch.compile(self._vectors, *args, **kwargs)
        self.sub_objectives()[0].compile(*args, **kwargs)

    @classmethod
    def options(cls) -> dict[str, Parameter]:
        """Its own options, and those of contrast."""
        return super().options() | CRD.options()

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks with stages."""
        student, teacher = context.both_features("CKTF")
        return cls(student, teacher, context.dataset_size, labels=context.labels, **options)

    def extra_repr(self) -> str:
        """The weights of its two parts, for lists."""
        return f"beta {self.beta:g}, theta {self.theta:g}"

    def loss(
        self,
        student: Features,
        teacher: Features,
        index: Tensor,
        contrast_index: Tensor | None = None,
    ) -> Loss:
        """Loss of one batch; in training, `after_step` then updates the banks.

        Args:
            student: its features of a batch of images.
            teacher: its features of the same images.
            index: [B] int64, positions in the training set.
            contrast_index: [B, 1+K] int64 bank rows, column 0 the positive; drawn when None.

        Returns:
            The weighted total, and the terms `stem`, `module1`…, `embedding` before weighting.
        """
        memory = self.sub_objectives()[0].memory
        _check.indices("CKTF", index, len(student.logits), memory.dataset_size)
        if contrast_index is None:
            draw = memory.draw(index)
        else:
            draw = memory.draw_of(contrast_index, index)
        vectors = self.compute_vectors(student, teacher)
        losses = pair_losses(self.sub_objectives(), list(vectors.values()), draw)
        terms = dict(zip(vectors, losses.detach().unbind(), strict=True))
        return Loss((losses * self.pair_weights).sum(), terms)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return self.loss(student, require_not_none(teacher, "CKTF's teacher"), batch.index)

    def cacheable(self) -> CacheSpec:
        """The averages of maps that the heads read, where nothing else reads the maps."""
        if self.theta and (self.match != "last" or self.module_norm != "none"):
            raise MethodError(
                f"CKTF with match={self.match}, module_norm={self.module_norm} reads the teacher's "
                "whole maps before it averages them, and a teacher cache holds averages. Train "
                "without teacher_cache, or with options.cktf.match=last and "
                "options.cktf.module_norm=none."
            )
        return self._cache_spec

    def uninformed_terms(self, batch: int) -> dict[str, float]:
        """Those of the pairs."""
        return {
            name: pair.uninformed_terms(batch)["crd"]
            for name, pair in zip(self.pair_names, self.sub_objectives(), strict=True)
        }

    def sub_objectives(self) -> list[CRD]:
        """The pairs, typed."""
        return [cast(CRD, pair) for pair in self.pairs]

    def footprint(self, batch: int) -> Footprint:
        """Memory of all pairs' banks and a step; MethodError for a batch too large for them."""
        pairs = self.sub_objectives()
        pairs[0].memory.check_batch(batch)
        return footprint(pairs[0].config, pairs[0].memory.dataset_size, batch, len(pairs))

    @torch.no_grad()
    def fill(self, student: Features, teacher: Features | None, batch: Batch) -> None:
        """Put a batch's rows into the memories of all pairs."""
        vectors = self._vectors(student, require_not_none(teacher, "CKTF's teacher"))
        memory = self.sub_objectives()[0].memory
        _check.indices("CKTF", batch.index, len(student.logits), memory.dataset_size)
        store_rows(self.sub_objectives(), list(vectors.values()), memory.reserve(batch.index))
        memory.record_row_owners()

    def _vectors(self, student: Features, teacher: Features) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs of each pair's heads, in the order of `pairs`; none for a weight of 0."""
        for s, t in ((student.stem, teacher.stem), (student.embedding, teacher.embedding)):
            if s is not None and t is not None:
                _check.same_batch("CKTF", s, t)
        vectors: dict[str, tuple[Tensor, Tensor]] = {}
        if self.theta:
            vectors["stem"] = self._stem(student, teacher)
            for k, (stage, candidates) in enumerate(self._stages(student, teacher), start=1):
                vectors[f"module{k}"] = self._module(stage, candidates)
        if self.beta:
            vectors["embedding"] = embeddings("CKTF", student, teacher)
        return vectors

    def _stem(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        s, t = require_not_none(student.stem, "A stem"), require_not_none(teacher.stem, "A stem")
        grid = pooled_grid_size(s.shape, t.shape, self._pool_globally)
        return (
            module_vector(s, s.shape[1], grid, "none"),
            module_vector(t.detach(), t.shape[1], grid, "none"),
        )

    def _map_spec(self, student: Features, teacher: Features) -> CacheSpec:
        """The teacher's maps that the heads read, each averaged to its grid."""

        def grid(student_map: Tensor | None, teacher_map: Tensor | None) -> tuple[int, int]:
            s, t = require_not_none(student_map, "A stem"), require_not_none(teacher_map, "A stem")
            return pooled_grid_size(s.shape, t.shape, self._pool_globally)

        positions = pair_stages(range(len(student.stages)), range(len(teacher.stages)))
        stages = ((t, grid(student.stages[s], teacher.stages[t])) for s, t in positions)
        return CacheSpec(stem=grid(student.stem, teacher.stem), stages=tuple(stages))

    def _stages(
        self, student: Features, teacher: Features
    ) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        """Each student stage's map with the teacher's maps that it may be matched with.

        Of the network with more stages, those at even distances are used, the last among them.
        """
        blocks = (
            teacher.blocks if "blocks" in self.requires else tuple((m,) for m in teacher.stages)
        )
        if teacher.stages and not blocks:
            raise MethodError(
                f"match={self.match} chooses among the blocks of the teacher's stages, and they "
                "are not known. Give them in its taps, or set match=last."
            )
        if not (student.stages and blocks):
            raise MethodError("CKTF compares stages, and one of the networks has none.")
        return pair_stages(student.stages, blocks)

    def _module(self, student: Tensor, candidates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Maps averaged to one grid: `multiply_head` reads a narrower one as padded with zeros."""
        # The same size for every candidate: the heads are as wide as the widest.
        grid = pooled_grid_size(student.shape, candidates[-1].shape, self._pool_globally)
        widths = [m.shape[1] for m in candidates]
        # Candidates of unequal widths are padded themselves, to be of one shape.
        width = widths[0] if len(set(widths)) == 1 else max(student.shape[1], *widths)

        def pooled(feature_map: Tensor, channels: int) -> Tensor:
            return pooled_map(feature_map, channels, grid, self.module_norm)

        teacher = self._match(student.detach(), candidates, lambda m: pooled(m, width))
        return pooled(student, student.shape[1]), teacher

    def _match(
        self,
        student: Tensor,
        candidates: tuple[Tensor, ...],
        vector: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The heads' part of the teacher's map that `match` pairs with the student's."""
        candidates = tuple(m.detach() for m in candidates)
        if self.match == "last" or len(candidates) == 1:
            return vector(candidates[-1])
        if self.match == "first":
            return vector(candidates[0])
        if self.match == "random":
            # Reading it keeps no GPU waiting, unless processes have to agree on it there.
            device = torch.device("cpu") if num_processes() == 1 else student.device
            position = torch.randint(len(candidates), (), device=device)
            return vector(candidates[int(broadcast_first(position))])
        cosines = torch.stack([_cosine(student, c) for c in candidates])
        chosen = cosines.argmin() if self.match == "smallest" else cosines.argmax()
        if student.device.type == "cpu":
            return vector(candidates[int(chosen)])
        # A GPU forms the vectors of all: reading which one would wait for it in every step.
        return torch.stack([vector(c) for c in candidates]).index_select(0, chosen.view(1))[0]


def _head_sizes(student: Tensor, teacher: Tensor) -> tuple[int, int]:
    """Lengths of the vectors [B, n] that two heads read; of maps [B, C, h, w] the wider's."""
    sizes = student[0].numel(), teacher[0].numel()
    return sizes if student.dim() == 2 else (max(sizes), max(sizes))


@full_precision
def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosine similarity of two whole batches of maps, of all processes, fitted to each other.

    Every unit is divided by its norm over the batch first.
    """
    # As the objective is built, one of the networks may be on a GPU already.
    teacher = teacher.to(student.device)
    if student.shape[-2:] == teacher.shape[-2:]:
        return _same_size_cosine(*sorted((student, teacher), key=lambda m: m.shape[1]))
    grid = [min(s, t) for s, t in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
    channels = max(student.shape[1], teacher.shape[1])
    s, t = (
        module_vector(m, channels, (grid[0], grid[1]), "batch").flatten()
        for m in (student, teacher)
    )
    return _cosine_of(*sum_over_processes(torch.stack([s @ t, s @ s, t @ t])).unbind())


def _same_size_cosine(narrow: Tensor, wide: Tensor) -> Tensor:
    """The same for maps of one size, from sums over the batch: only these are divided."""
    narrow, wide = narrow.float(), wide.float()
    channels = narrow.shape[1]
    # The narrow map is centered on the channels of the wide one.
    offset = (wide.shape[1] - channels) // 2
    middle = slice(offset, offset + channels)
    sums = torch.cat(
        [_sum_batch(m) for m in (narrow * wide[:, middle], narrow.square(), wide.square())]
    )
    product, narrow_squares, wide_squares = torch.split(
        sum_over_processes(sums), [channels, channels, wide.shape[1]]
    )
    narrow_scale, wide_scale = (
        squares.clamp_min(EPSILON**2).rsqrt() for squares in (narrow_squares, wide_squares)
    )
    aligned = product * narrow_scale * wide_scale[middle]
    return _cosine_of(
        aligned.sum(),
        (narrow_squares * narrow_scale**2).sum(),
        (wide_squares * wide_scale**2).sum(),
    )


def _sum_batch(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [C, H, W], a sum in memory order: another order takes six times as long."""
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).sum(0).permute(2, 0, 1)
    return maps.sum(0)


def _cosine_of(product: Tensor, student_square: Tensor, teacher_square: Tensor) -> Tensor:
    return product * (student_square * teacher_square).clamp_min(_MIN_PRODUCT).rsqrt()


def _check_options(beta: float, theta: float, match: str, module_norm: str) -> None:
    if not (0 <= beta < math.inf and 0 <= theta < math.inf and beta + theta):
        raise MethodError(
            "CKTF's weights are finite numbers from 0, and one is above 0: "
            f"beta {beta}, theta {theta}."
        )
    for name, value, known in (
        ("match", match, get_args(Match)),
        ("module_norm", module_norm, get_args(ModuleNorm)),
    ):
        if value not in known:
            raise MethodError(f"CKTF knows no {name} {value!r}. {nearest(value, known)}")
