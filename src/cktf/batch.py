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
        origin: the batch that was moved here from another device.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    view: int | None = None
    origin: "Batch | None" = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return replace(
            self,
            images=copy_to_device(self.images, device),
            labels=None if self.labels is None else copy_to_device(self.labels, device),
            index=copy_to_device(self.index, device),
            origin=self.original,
        )

    @property
    def original(self) -> "Batch":
        """As it came, where looking at its numbers keeps no GPU waiting."""
        return self.origin or self

    def __len__(self) -> int:
        return len(self.images)


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; neither waits for the other where it goes to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # From other memory a copy waits for the work before it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
