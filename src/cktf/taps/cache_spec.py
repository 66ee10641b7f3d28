"""Which of a network's features are enough for an objective, and how small they may be made."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cktf.models.feature_paths import FeaturePaths
from cktf.taps.features import Features

Grid = tuple[int, int]


@dataclass(frozen=True)
class CacheSpec:
    """Logits, and what else of the features is enough.

    Attributes:
        embedding: whether it is read.
        stem: height and width of the grid to which the stem's map may be averaged; None: not read.
        stages: position and grid of each stage that is read; the others are left out.
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

    def named(self, paths: FeaturePaths) -> dict[str, "CacheSpec"]:
        """Each tensor by itself, by what it is, where it is from and how it was averaged."""
        found = {"logits": CacheSpec()}
        if self.embedding:
            found[f"embedding {paths.embedding}"] = CacheSpec(embedding=True)
        if self.stem:
            found[f"stem {paths.stem} {_by(self.stem)}"] = CacheSpec(stem=self.stem)
        for position, grid in self.stages:
            name = f"stage {paths.stages[position]} {_by(grid)}"
            found[name] = CacheSpec(stages=((position, grid),))
        return found

    def tensor(self, features: Features) -> Tensor:
        """The one tensor that this stands for."""
        if self.stages:
            ((position, grid),) = self.stages
            return averaged(features.stages[position], grid)
        if self.stem:
            assert features.stem is not None
            return averaged(features.stem, self.stem)
        found = features.embedding if self.embedding else features.logits
        assert found is not None
        return found

    def assembled(self, rows: list[Tensor]) -> Features:
        """Features from their tensors, in the order of `named`."""
        given = iter(rows)
        return Features(
            logits=next(given),
            embedding=next(given) if self.embedding else None,
            stem=next(given) if self.stem else None,
            stages=tuple(next(given) for _ in self.stages),
        )

    def of(self, features: Features) -> Features:
        """Features as they are when they come from what was kept."""
        empty = FeaturePaths(stages=tuple(str(p) for p in range(len(features.stages))))
        return self.assembled([one.tensor(features) for one in self.named(empty).values()])


def averaged(feature_map: Tensor, grid: Grid) -> Tensor:
    """A map average-pooled to a grid, in its own type."""
    return F.adaptive_avg_pool2d(feature_map.float(), grid).to(feature_map.dtype)


def _by(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
