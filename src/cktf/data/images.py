"""A data set that fits in memory: every image as bytes in one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cktf.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Images and labels in memory; also a map-style data set of `(image, label)`.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int64.
        classes: the names of the classes, in the order of the labels.
        mean, std: per channel, of images in [0, 1], for networks that are trained on it.
        flip: whether a mirrored image is still one of its class.
        name: what users call it.
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    name: str = "data"

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or not len(self.images):
            raise DataError(
                f"{self.name}: as many labels as images, and at least one; given "
                f"{len(self.images)} images and {len(self.labels)} labels."
            )
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(
                f"{self.name}: labels run from {int(self.labels.min())} to "
                f"{int(self.labels.max())}, and there are {len(self.classes)} classes. The files "
                "may be damaged, or of another data set."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.images[position].permute(2, 0, 1).float() / 255, int(self.labels[position])
