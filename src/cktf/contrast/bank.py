"""A memory of one network's representations: a tensor with a row per training sample."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Storage = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_bank(size: int, dim: int, storage: Storage = "float32") -> Tensor:
    """[size, dim] rows from U(-a, a) with a = 1/sqrt(dim/3), so that their length is near one."""
    bound = (dim / 3) ** -0.5
    return torch.empty(size, dim).uniform_(-bound, bound).to(DTYPES[storage])


@torch.no_grad()
def update_bank(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """`bank[i] <- norm(momentum * bank[i] + (1 - momentum) * row)`, in place.

    A sample that comes twice in a batch leaves the row of one of its occurrences.

    Args:
        bank: [N, D] float32 or bfloat16; the update is computed in float32.
        index: [B] int64.
        rows: [B, D], of unit length.
        momentum: how much of the old row stays, from 0 to 1.
    """
    mixed = bank[index].float().mul_(momentum).add_(rows.detach().float(), alpha=1 - momentum)
    bank.index_copy_(0, index, F.normalize(mixed, dim=1).to(bank.dtype))
