"""Which of a network's features an objective reads, and how small its maps may be averaged."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cktf.models.feature_paths import FeaturePaths
from cktf.taps.features import Features

Grid = tuple[int, int]


@dataclass(frozen=True)
class CacheSpec:
    """The features to cache: logits, and what is named here.

    Attributes:
        embedding: whether it is read.
        stem: height and width of the grid to which the stem's map may be averaged; None: not read.
        stages: position and grid of each stage that is read.
    """

    embedding: bool = False
    stem: Grid | None = None
    stages: tuple[tuple[int, Grid], ...] = ()

    def __or__(self, other: "CacheSpec") -> "CacheSpec":
        """Enough for both; at most one of them reads maps."""
        return CacheSpec(
            self.embedding or other.embedding,
            self.stem or other.stem,
            self.stages or other.stages,
        )

    def tensor_names(self, paths: FeaturePaths) -> list[str]:
        """A name for each cached tensor: its kind, its path and its grid."""
        names = ["logits"]
        if self.embedding:
            names.append(f"embedding {paths.embedding}")
        if self.stem:
            names.append("stem {} {}x{}".format(paths.stem, *self.stem))
        return names + ["stage {} {}x{}".format(paths.stages[p], *grid) for p, grid in self.stages]

    def tensors(self, features: Features) -> list[Tensor]:
        """The cached tensors, in the order of `tensor_names`."""
        tensors = [features.logits]
        if self.embedding:
            assert features.embedding is not None
            tensors.append(features.embedding)
        if self.stem:
            assert features.stem is not None
            tensors.append(_average(features.stem, self.stem))
        return tensors + [_average(features.stages[p], grid) for p, grid in self.stages]

    def assemble(self, tensors: list[Tensor]) -> Features:
        """Features from their cached tensors."""
        remaining = iter(tensors)
        return Features(
            logits=next(remaining),
            embedding=next(remaining) if self.embedding else None,
            stem=next(remaining) if self.stem else None,
            stages=tuple(remaining),
        )

    def reduce(self, features: Features) -> Features:
        """Features as they would come from the cache."""
        return self.assemble(self.tensors(features))


def _average(feature_map: Tensor, grid: Grid) -> Tensor:
    """A map average-pooled to a grid, in its own type."""
    return F.adaptive_avg_pool2d(feature_map.float(), grid).to(feature_map.dtype)
