"""Collective operations over the processes of a run; with one process they return their input."""

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(local: Tensor) -> Tensor:
    """[B, …] of every process -> [processes · B, …], in the order of their ranks; no gradient.

    B is the same in all processes.
    """
    count = num_processes()
    if count == 1:
        return local.detach()
    parts = [torch.empty_like(local) for _ in range(count)]
    dist.all_gather(parts, local.detach().contiguous())
    return torch.cat(parts)


def broadcast_first(value: Tensor) -> Tensor:
    """Replace a value by that of the first process, in place."""
    if num_processes() > 1:
        dist.broadcast(value, 0)
    return value


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum over the processes; no gradient."""
    if num_processes() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean over the processes; no gradient."""
    return sum_over_processes(value) / num_processes()
