"""What all processes of a run know together; alone, nothing is done."""

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(local: Tensor) -> Tensor:
    """[B, …] of every process -> [processes · B, …], in the order of their ranks; no gradient.

    B is the same in all of them: what they send each other has no length of its own.
    """
    count = processes()
    if count == 1:
        return local.detach()
    parts = [torch.empty_like(local) for _ in range(count)]
    dist.all_gather(parts, local.detach().contiguous())
    return torch.cat(parts)


def agreed(drawn: Tensor) -> Tensor:
    """What the first process drew."""
    if processes() > 1:
        dist.broadcast(drawn, 0)
    return drawn


def summed(value: Tensor) -> Tensor:
    """Sum over the processes; no gradient."""
    if processes() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def averaged(value: Tensor) -> Tensor:
    """Mean over the processes; no gradient."""
    return summed(value) / processes()
