"""Draw the training samples that a batch is contrasted with.

With labels, a sample's negatives are the samples of other classes; without, all samples but
itself, as if each were a class. Order the samples by class and write that order down twice: the
negatives of any sample are then one contiguous range, from the end of its class to where that class
begins anew. K draws are one `random_` and a shift, for the whole batch, on the batch's device.
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

    order: Tensor
    after: Tensor
    count: Tensor

    def __init__(self, dataset_size: int, labels: Tensor | None = None) -> None:
        super().__init__()
        check_labels(dataset_size, labels)
        classes = torch.arange(dataset_size) if labels is None else labels
        # Half as wide as positions are elsewhere: each draw reads and sorts it sooner.
        order = classes.argsort(stable=True).int()
        _, class_of, sizes = torch.unique(classes, return_inverse=True, return_counts=True)
        # Derived from the data set, hence not saved with the run.
        self.register_buffer("order", torch.cat([order, order]), persistent=False)
        self.register_buffer("after", sizes.cumsum(0)[class_of], persistent=False)
        self.register_buffer("count", dataset_size - sizes[class_of], persistent=False)

    @torch.no_grad()
    def draw(self, index: Tensor, negatives: int) -> Tensor:
        """Negatives of a batch.

        Args:
            index: [B] int64, positions in the training set.
            negatives: K, draws for each anchor.

        Returns:
            [B, K] int64 positions; on a CPU they ascend.
        """
        after, count = self.after[index].unsqueeze(1), self.count[index].unsqueeze(1)
        negative_index = torch.empty(len(index), negatives, dtype=torch.int64, device=index.device)
        # Classes differ in size: 31 random bits are scaled to each anchor's own count, in integers;
        # a float32 could name no more than 2^24 rows, and round up to the count.
        negative_index.random_(1 << 31).mul_(count).bitwise_right_shift_(31).add_(after)
        negative_index = self.order.index_select(0, negative_index.view(-1)).view_as(negative_index)
        if negative_index.device.type == "cpu":
            # Scores are gathered, and weights added, ten times faster in memory order.
            negative_index.numpy().sort(axis=1)
        return negative_index.long()


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
