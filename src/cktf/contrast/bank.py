"""A memory of one network's representations: a tensor with a row per training sample."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_bank(size: int, dim: int) -> Tensor:
    """[size, dim] rows from U(-a, a) with a = 1/sqrt(dim/3), so that their length is near one."""
    bound = (dim / 3) ** -0.5
    return torch.empty(size, dim).uniform_(-bound, bound)


@torch.no_grad()
def update_bank(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """`bank[i] <- norm(momentum * bank[i] + (1 - momentum) * row)`, in place.

    A sample that comes twice in a batch leaves the row of one of its occurrences.

    Args:
        bank: [N, D] float32.
        index: [B] int64.
        rows: [B, D], of unit length.
        momentum: how much of the old row stays, from 0 to 1.
    """
    mixed = bank[index].mul_(momentum).add_(rows.detach().float(), alpha=1 - momentum)
    bank.index_copy_(0, index, F.normalize(mixed, dim=1))
