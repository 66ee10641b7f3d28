"""The rows of one network's representations: on the device, in host memory or in a file."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf.errors import MethodError

Storage = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICE, HOST = "device", "host"
_CHUNK = 1 << 22


def random_bank(size: int, dim: int, storage: Storage = "float32", place: str = DEVICE) -> Tensor:
    """[size, dim] rows from U(-a, a) with a = 1/sqrt(dim/3), so that their length is near one.

    Args:
        size: rows.
        dim: their length.
        storage: their type.
        place: `device` or `host`, both in this process's memory; or a folder, in which a file that
            is deleted with the process is mapped, for banks larger than memory.

    Raises:
        MethodError: a place that is no folder.
    """
    bound = (dim / 3) ** -0.5
    dtype = DTYPES[storage]
    bank = (
        torch.empty(size, dim, dtype=dtype)
        if place in (DEVICE, HOST)
        else _mapped(size, dim, dtype, Path(place))
    )
    # Drawn in float32, in pieces, so that a mapped bank needs no second copy in memory.
    flat = bank.view(-1)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(torch.empty(part.shape).uniform_(-bound, bound))
    return bank


def _mapped(size: int, dim: int, dtype: torch.dtype, folder: Path) -> Tensor:
    if not folder.is_dir():
        raise MethodError(
            f"Banks are kept on the 'device', in 'host' memory or in a folder; {folder} is none."
        )
    handle, name = tempfile.mkstemp(suffix=".bank", dir=folder)
    os.close(handle)
    try:
        flat = torch.from_file(name, shared=True, size=size * dim, dtype=dtype)
    finally:
        os.unlink(name)
    return flat.view(size, dim)


def rows_of(bank: Tensor, rows: Tensor | None, device: torch.device) -> Tensor:
    """Chosen rows, or all, where they are needed: only these are moved."""
    # Five times faster than indexing, on the CPU.
    return (bank if rows is None else bank.index_select(0, rows.to(bank.device))).to(device)


@torch.no_grad()
def update_bank(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """`bank[i] <- norm(momentum * bank[i] + (1 - momentum) * row)`, in place.

    A sample that comes twice in a batch leaves the row of one of its occurrences; on a GPU that may
    be numbers of both. No batch of this library holds one twice.

    Args:
        bank: [N, D] float32 or bfloat16; the update is computed in float32.
        index: [B] int64.
        rows: [B, D], of unit length.
        momentum: how much of the old row stays, from 0 to 1.
    """
    index, mixed = index.to(bank.device), rows.detach().to(bank.device, torch.float32)
    if momentum:
        mixed = bank.index_select(0, index).float().mul_(momentum).add_(mixed, alpha=1 - momentum)
    bank.index_copy_(0, index, F.normalize(mixed, dim=1).to(bank.dtype))
