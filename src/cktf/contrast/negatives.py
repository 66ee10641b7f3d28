"""Which training samples a batch is contrasted with.

With labels, a sample's negatives are the samples of other classes; without, all samples but
itself. Order the samples by class once, and either is everything outside one contiguous range: K
draws are one `randint` and a shift past the range, for the whole batch, on the batch's device.
Draws are with replacement, as noise-contrastive estimation assumes.
"""

import torch
from torch import Tensor, nn

from cktf.errors import MethodError, ShapeError


class NegativeSampler(nn.Module):
    """Draws negatives for whole batches.

    Args:
        dataset_size: N, samples in the training set.
        labels: [N] int64 classes, or None where there are none: then only the anchor itself is
            excluded.

    Raises:
        MethodError: there is nothing to draw from: one class, or one sample.
        ShapeError: labels that are not [N].
    """

    order: Tensor | None
    start: Tensor
    length: Tensor

    def __init__(self, dataset_size: int, labels: Tensor | None = None) -> None:
        super().__init__()
        self.dataset_size = dataset_size
        check_labels(dataset_size, labels)
        if labels is None:
            order, start, length = None, torch.arange(dataset_size), torch.ones(dataset_size).long()
        else:
            # Half as wide as positions are elsewhere: each draw reads and sorts it sooner.
            order = labels.argsort(stable=True).int()
            _, class_of, counts = torch.unique(labels, return_inverse=True, return_counts=True)
            start, length = (counts.cumsum(0) - counts)[class_of], counts[class_of]
        # Derived from the data set, hence not saved with the run.
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("length", length, persistent=False)

    @torch.no_grad()
    def draw(self, index: Tensor, negatives: int) -> Tensor:
        """Negatives of a batch.

        Args:
            index: [B] int64, positions in the training set.
            negatives: K, draws for each anchor.

        Returns:
            [B, K] int64 positions; on a CPU they ascend.
        """
        start, length = self.start[index].unsqueeze(1), self.length[index].unsqueeze(1)
        drawn = torch.empty(len(index), negatives, dtype=torch.int64, device=index.device)
        if self.order is None:
            drawn.random_(self.dataset_size - 1)
            drawn += drawn >= start
        else:
            # Classes differ in size: 31 random bits are scaled to each anchor's own count, in
            # integers; a float32 could name no more than 2^24 rows, and round up to the count.
            drawn.random_(1 << 31).mul_(self.dataset_size - length).bitwise_right_shift_(31)
            drawn += (drawn >= start) * length
            drawn = self.order.index_select(0, drawn.view(-1)).view_as(drawn)
        if drawn.device.type == "cpu":
            # In the order of memory, scores are gathered, and weights added, ten times faster.
            drawn.numpy().sort(axis=1)
        return drawn


def check_labels(dataset_size: int, labels: Tensor | None) -> None:
    """Raise unless every sample has a negative: another class, or without labels another sample."""
    if dataset_size < 2:
        raise MethodError(f"Contrast needs 2 or more samples, given {dataset_size}.")
    if labels is None:
        return
    if labels.shape != (dataset_size,):
        raise ShapeError(
            f"labels are [{dataset_size}], one per sample; given {tuple(labels.shape)}."
        )
    if bool((labels == labels[0]).all()):
        raise MethodError(
            "Negatives are samples of other classes, and all samples have one class. Use more "
            "classes, or no labels."
        )
