"""Module paths of the features that knowledge transfer compares."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class FeaturePaths:
    """Module paths of one network's features; empty where the network has none.

    A path names a module as in `Module.get_submodule` and stands for its output, or with `:input`
    appended for its first input.

    Attributes:
        stem: the map after the first convolution (with its normalization and activation, if any).
        stages: the last map of every stage, after its activation.
        blocks: for every stage the outputs of its blocks, the last of which is the stage's map.
        preacts: for every stage its last map before the activation.
        embedding: the vector that the classifier reads.
        pool_globally: whether CKTF averages each map to one pixel, as published for these networks.
    """

    stem: str = ""
    stages: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    preacts: tuple[str, ...] = ()
    embedding: str = ""
    pool_globally: bool = False

    def prefixed(self, prefix: str) -> "FeaturePaths":
        """The paths in a network that holds this one as its submodule `prefix`."""

        def add(path: str) -> str:
            return f"{prefix}.{path}" if path else ""

        return replace(
            self,
            stem=add(self.stem),
            stages=tuple(map(add, self.stages)),
            blocks=tuple(tuple(map(add, stage)) for stage in self.blocks),
            preacts=tuple(map(add, self.preacts)),
            embedding=add(self.embedding),
        )

    def updated(self, overrides: "FeaturePaths") -> "FeaturePaths":
        """Replace what `overrides` has; new stages remove the blocks and preacts of the old."""
        base = replace(self, blocks=(), preacts=()) if overrides.stages else self
        values = {field.name: getattr(overrides, field.name) for field in fields(overrides)}
        return replace(base, **{name: value for name, value in values.items() if value})

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def layer_feature_paths(
    blocks_per_stage: Sequence[int], activation: str, embedding: str, *, pool_globally: bool = False
) -> FeaturePaths:
    """Paths where the stem is `relu` and the blocks of stages `layer1`… end with `activation`."""
    stages = {f"layer{k}": count for k, count in enumerate(blocks_per_stage, start=1)}
    return FeaturePaths(
        stem="relu",
        stages=tuple(stages),
        blocks=tuple(tuple(f"{s}.{i}" for i in range(count)) for s, count in stages.items()),
        preacts=tuple(f"{s}.{count - 1}.{activation}:input" for s, count in stages.items()),
        embedding=embedding,
        pool_globally=pool_globally,
    )
