"""One network's features of one batch."""

from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_map

FEATURES = ("logits", "embedding", "stem", "stages", "blocks", "preacts")


@dataclass(frozen=True)
class Features:
    """Features of one batch; empty where no tap needed them.

    Attributes:
        logits: [B, classes].
        embedding: [B, D], what the classifier reads.
        stem: [B, C, H, W], after the first convolution.
        stages: one [B, C, H, W] per stage, after its activation.
        blocks: per stage the maps of its blocks, the last of which is the stage's.
        preacts: one [B, C, H, W] per stage, before its activation.
        pool_globally: whether CKTF averages each map to one pixel, as published for these networks.
    """

    logits: Tensor
    embedding: Tensor | None = None
    stem: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    blocks: tuple[tuple[Tensor, ...], ...] = ()
    preacts: tuple[Tensor, ...] = ()
    pool_globally: bool = False

    def __repr__(self) -> str:
        shapes = tree_map(lambda x: list(x.shape) if isinstance(x, Tensor) else x, vars(self))
        return f"Features({', '.join(f'{name}={shape}' for name, shape in shapes.items())})"
