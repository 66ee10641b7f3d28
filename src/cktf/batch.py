"""A batch of images, as it passes through training."""

from collections.abc import Hashable
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
        host_index: the index on the CPU, where reading it waits for no GPU; None for `index`.
        source: equal for batches of the same images; None where that is not known.
    """

    images: Tensor
    labels: Tensor | None
    index: Tensor
    view: int | None = None
    host_index: Tensor | None = None
    source: Hashable = None

    def to(self, device: torch.device) -> "Batch":
        """Copy the batch to a device."""
        return replace(
            self,
            images=tensor_to_device(self.images, device),
            labels=None if self.labels is None else tensor_to_device(self.labels, device),
            index=tensor_to_device(self.index, device),
            host_index=self.index if self.host_index is None else self.host_index,
        )

    def __len__(self) -> int:
        return len(self.images)


def tensor_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, asynchronously from the CPU to a GPU.

    The other way it waits: a copy that has not ended would be read.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only copies from pinned memory are asynchronous; PyTorch reuses it after the copy.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
