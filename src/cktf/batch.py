"""What travels through training: one batch of images."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        images: [B, C, H, W] float32 in [0, 1] (or as a user's own data set gives them).
        labels: [B] int64 classes; None where the data has none.
        index: [B] int64, each sample's position in its data set.
        view: which of a finite set of augmentations all of them are in; None for new ones.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    view: int | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if self.images.device == device:
            return self
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=labels,
            index=self.index.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.images)
