"""A batch of images, as it passes through training."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        images: [B, C, H, W] float32 in [0, 1]; a user's data set may give other ranges.
        labels: [B] int64 classes; None where the data has none.
        index: [B] int64, each sample's position in its data set.
        view: the number of the images' augmentation in a finite set; None for random ones.
        origin: the batch on its first device; None for that batch itself.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    view: int | None = None
    origin: "Batch | None" = None

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return replace(
            self,
            images=tensor_to_device(self.images, device),
            labels=None if self.labels is None else tensor_to_device(self.labels, device),
            index=tensor_to_device(self.index, device),
            origin=self.original,
        )

    @property
    def original(self) -> "Batch":
        """The batch on its first device, where reading its numbers synchronizes no GPU."""
        return self.origin or self

    def __len__(self) -> int:
        return len(self.images)


def tensor_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, asynchronously where that is a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only copies from pinned memory are asynchronous.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
