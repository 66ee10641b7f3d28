"""One tap of a frozen network for several readers of the same images, in turn."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cktf.batch import Batch
from cktf.models.feature_paths import FeaturePaths
from cktf.taps.features import Features
from cktf.taps.tap import Tap


class SharedTap:
    """Taps everything that any of its readers needs, and keeps the features of the last images.

    So several students that see the same batches cost one pass of their teacher.

    Args:
        model: the frozen network.
        compile: run it through `torch.compile`.
    """

    def __init__(self, model: nn.Module, *, compile: bool = False) -> None:
        self.model, self.compile = model, compile
        self._needs: frozenset[str] = frozenset()
        self._paths = FeaturePaths()
        self._tap: Tap | None = None
        self._original: Tensor | None = None
        self._features: Features | None = None

    def add_reader(self, paths: FeaturePaths, needs: Iterable[str]) -> "SharedTap":
        """The same tap, with what another reader needs too; the last images are forgotten.

        A reader of logits alone knows no paths; those of the others stay.
        """
        self._needs |= frozenset(needs)
        self._paths = self._paths.updated(paths)
        self._tap = Tap(self.model, self._paths, self._needs, compile=self.compile)
        self._original = None
        return self

    def __call__(self, images: Tensor) -> Features:
        """Features of any images [B, C, H, W]."""
        if self._tap is None:
            raise RuntimeError("Call SharedTap.add_reader before the first use.")
        return self._tap(images)

    def extract(self, batch: Batch) -> Features:
        """Features of a batch's images: those of the last batch if its images were the same."""
        images = batch.original.images
        known = self._original is not None and torch.equal(images, self._original)
        if not known or self._features is None:
            self._features = self(batch.images)
            self._original = images
        return self._features
