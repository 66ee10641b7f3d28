"""Top-1 and top-5 accuracy of a classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cktf.data import Loader
from cktf.errors import DataError


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in per cent.

    Attributes:
        top1: share of images whose largest logit is that of the right class.
        top5: share whose right class is among the five largest logits, or all if there are fewer.
        samples: number of images.
        num_classes: number of logits; None where it is not known.
    """

    top1: float
    top5: float
    samples: int
    num_classes: int | None = None

    @property
    def standard_error(self) -> float:
        """Standard error of top1, in points."""
        return standard_error(self.top1, self.samples)


def standard_error(top1: float, images: int) -> float:
    """Standard error of an accuracy, in points, if the test set is a random sample."""
    share = top1 / 100
    return 100 * math.sqrt(share * (1 - share) / images)


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    loader: Loader,
    num_classes: int,
    device: torch.device,
    after_batch: Callable[[], None] | None = None,
) -> Accuracy:
    """Measure the accuracy of a classifier.

    Args:
        forward: a function from images to logits [B, num_classes], in eval mode.
        loader: labeled batches.
        num_classes: number of logits.
        device: device of the network.
        after_batch: called after every batch.

    Raises:
        DataError: data without labels.
    """
    hits = torch.zeros(2, dtype=torch.int64, device=device)
    for batch in loader.epoch(0, device=device):
        if batch.labels is None:
            raise DataError("Accuracy needs labels, and this data set has none.")
        logits, labels = forward(batch.images).float(), batch.labels[:, None]
        first = logits.argmax(1, keepdim=True) == labels
        among_five = logits.topk(min(5, num_classes)).indices == labels
        hits += torch.stack([first.sum(), among_five.sum()])
        if after_batch is not None:
            after_batch()
    # A share of float32, in which earlier results were recorded; rounding removes its noise.
    top1, top5 = (round(100 * share, 4) for share in (hits.float() / loader.samples).tolist())
    return Accuracy(top1, top5, loader.samples, num_classes)
