"""Banks: rows of one network's representations, on the device, in host memory or in a file."""

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


def random_bank(
    size: int, dim: int, storage: Storage = "float32", bank_device: str = DEVICE
) -> Tensor:
    """[size, dim] rows from U(-a, a) with a = 1/sqrt(dim/3), so that their length is near one.

    Args:
        size: number of rows.
        dim: length of a row.
        storage: type of the rows.
        bank_device: `device` or `host`, both in this process's memory; or a folder, in which a
            file that is deleted with the process is mapped, for banks larger than memory.

    Raises:
        MethodError: no such folder.
    """
    bound = (dim / 3) ** -0.5
    dtype = DTYPES[storage]
    bank = (
        torch.empty(size, dim, dtype=dtype)
        if bank_device in (DEVICE, HOST)
        else _map_file(size, dim, dtype, Path(bank_device))
    )
    # Drawn in float32, in pieces, so that a mapped bank needs no second copy in memory.
    flat = bank.view(-1)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(torch.empty(part.shape).uniform_(-bound, bound))
    return bank


def _map_file(size: int, dim: int, dtype: torch.dtype, folder: Path) -> Tensor:
    if not folder.is_dir():
        raise MethodError(
            f"bank_device is 'device', 'host' or a folder; given {folder}, which is no folder."
        )
    handle, name = tempfile.mkstemp(suffix=".bank", dir=folder)
    os.close(handle)
    try:
        flat = torch.from_file(name, shared=True, size=size * dim, dtype=dtype)
    finally:
        os.unlink(name)
    return flat.view(size, dim)


def rows_of(bank: Tensor, rows: Tensor | None, device: torch.device) -> Tensor:
    """Select rows of a bank, or all of them, and move these to a device."""
    # index_select is five times faster than indexing, on the CPU.
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
        momentum: fraction of the old row that stays, from 0 to 1.
    """
    index, new_rows = index.to(bank.device), rows.detach().to(bank.device, torch.float32)
    if momentum:
        old_rows = bank.index_select(0, index).float()
        new_rows = old_rows.mul_(momentum).add_(new_rows, alpha=1 - momentum)
    bank.index_copy_(0, index, F.normalize(new_rows, dim=1).to(bank.dtype))
