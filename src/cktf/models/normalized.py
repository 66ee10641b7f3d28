"""A network that takes images in [0, 1] and normalizes them itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cktf.errors import ModelError
from cktf.models.feature_paths import FeaturePaths

_MAX_SIZE = 1024


class Normalized(nn.Module):
    """Compute `network((images - mean) / std)`.

    Each network carries its own mean, std and image size, so that a teacher and a student with
    different inputs take the same batch.

    Args:
        network: from normalized images to logits.
        mean: one per channel, of images in [0, 1].
        std: one per channel, positive.
        size: height and width to which images are resized; None: not resized.

    Raises:
        ModelError: mean and std of unequal length, a std that is not positive, or a size that is
            not from 1 to 1024.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = None,
    ) -> None:
        super().__init__()
        if size is not None and not 1 <= size <= _MAX_SIZE:
            raise ModelError(f"Images have 1 to {_MAX_SIZE} pixels a side, given {size}.")
        if not std or len(mean) != len(std) or min(std) <= 0:
            raise ModelError(
                f"Normalization needs a mean and a positive std per channel: mean {tuple(mean)}, "
                f"std {tuple(std)}."
            )
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def feature_paths(self) -> FeaturePaths | None:
        """The wrapped network's feature paths with the prefix `network`; None if it has none."""
        paths: FeaturePaths | None = getattr(self.network, "feature_paths", None)
        return None if paths is None else paths.prefixed("network")

    @property
    def normalizes(self) -> bool:
        """Whether it changes pixel values, not only the size of images."""
        return bool((self.mean != 0).any() or (self.std != 1).any())

    def resized_shape(self, images: torch.Size) -> torch.Size:
        """The shape of a batch of images after resizing."""
        return images if self.size is None else torch.Size((*images[:2], self.size, self.size))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] -> logits [B, classes]."""
        height, width = self.resized_shape(images.shape)[2:]
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.std)  # type: ignore[no-any-return]
