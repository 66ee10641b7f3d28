"""One tap of a frozen network whose features several students read."""

from collections.abc import Hashable, Iterable

from torch import Tensor, nn

from cktf.batch import Batch
from cktf.models.feature_paths import FeaturePaths
from cktf.taps.features import Features
from cktf.taps.tap import Tap


class SharedTap:
    """Taps all that any of its readers needs, and keeps the features of the last batch.

    Several students that train on the same batches so cost one forward pass of their teacher.
    """

    def __init__(self, model: nn.Module, *, compile: bool = False) -> None:
        self.model, self.compile = model, compile
        self._needs: frozenset[str] = frozenset()
        self._paths = FeaturePaths()
        self._tap: Tap | None = None
        self._last: tuple[Hashable, Features] | None = None

    def add_reader(self, paths: FeaturePaths, needs: Iterable[str]) -> "SharedTap":
        """Tap what another reader needs too, and forget the last batch.

        A reader of logits alone knows no paths; those of the others stay.
        """
        self._needs |= frozenset(needs)
        self._paths = self._paths.updated(paths)
        self._tap = Tap(self.model, self._paths, self._needs, compile=self.compile)
        self._last = None
        return self

    def __call__(self, images: Tensor) -> Features:
        """Features of images [B, C, H, W], computed now."""
        if self._tap is None:
            raise RuntimeError("Call SharedTap.add_reader before the first use.")
        return self._tap(images)

    def extract(self, batch: Batch) -> Features:
        """Features of a batch, computed once for successive readers of the same `Batch.source`.

        A batch without a source is computed every time.
        """
        if batch.source is None or self._last is None or self._last[0] != batch.source:
            self._last = batch.source, self(batch.images)
        return self._last[1]
