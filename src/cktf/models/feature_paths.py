"""Where a network keeps the features that knowledge transfer compares."""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class FeaturePaths:
    """Module paths of one network's features; empty where the network has none.

    A path names a module as `Module.get_submodule` does and stands for its output; with `:input`
    behind it, for the module's first input.

    Attributes:
        stem: the map after the first convolution (with its normalization and activation, if any).
        stages: the last map of every stage, after its activation.
        blocks: for every stage the outputs of its blocks, the last of which is the stage's map.
        preacts: for every stage the same place as `stages`, before the activation.
        embedding: the penultimate vector that the classifier reads.
        pool_globally: whether CKTF averages each map whole, as published for networks of this kind.
    """

    stem: str = ""
    stages: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    preacts: tuple[str, ...] = ()
    embedding: str = ""
    pool_globally: bool = False

    def prefixed(self, prefix: str) -> "FeaturePaths":
        """The same places in a network that holds this one as its submodule `prefix`."""

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

    def updated(self, given: "FeaturePaths") -> "FeaturePaths":
        """These, but for what is given; other stages have other blocks and maps before them."""
        kept = replace(self, blocks=(), preacts=()) if given.stages else self
        values = {field.name: getattr(given, field.name) for field in fields(given)}
        return replace(kept, **{name: value for name, value in values.items() if value})

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))
