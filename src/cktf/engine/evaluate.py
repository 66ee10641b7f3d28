"""Top-1 and top-5 accuracy of a classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from cktf.data import Loader
from cktf.errors import DataError


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in per cent.

    Attributes:
        top1: the class with the largest logit is right.
        top5: the right class is among the five largest (or all, where there are fewer).
        samples: images that were classified.
    """

    top1: float
    top5: float
    samples: int

    @property
    def standard_error(self) -> float:
        """Of top1."""
        return standard_error(self.top1, self.samples)


def standard_error(top1: float, images: int) -> float:
    """Of an accuracy, in points, for a test set drawn at random from all images of its kind."""
    share = top1 / 100
    return 100 * math.sqrt(share * (1 - share) / images)


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    loader: Loader,
    num_classes: int,
    device: torch.device,
    between: Callable[[], None] | None = None,
) -> Accuracy:
    """Classify a data set.

    Args:
        forward: from images to logits [B, num_classes]; its modules in eval mode.
        loader: labeled batches.
        num_classes: as many as there are logits.
        device: where the network is.
        between: called after every batch.

    Raises:
        DataError: data without labels.
    """
    metrics = MetricCollection(
        {
            f"top{k}": MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")
            for k in (1, 5)
        },
        compute_groups=False,
    ).to(device)
    for batch in loader.epoch(0):
        if batch.labels is None:
            raise DataError("Accuracy needs labels, and this data set has none.")
        batch = batch.to(device)
        metrics.update(forward(batch.images).float(), batch.labels)
        if between is not None:
            between()
    # Shares are counts over counts; rounding takes float32's noise off the per cent.
    found = {name: round(100 * float(value), 4) for name, value in metrics.compute().items()}
    return Accuracy(found["top1"], found["top5"], loader.samples)
