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


def allocate_banks(
    count: int, size: int, dim: int, storage: Storage = "float32", bank_device: str = DEVICE
) -> Tensor:
    """[count, size, dim], whose rows are not set yet.

    Args:
        count: number of banks.
        size: number of rows of each.
        dim: length of a row.
        storage: type of the rows.
        bank_device: `device` or `host`, both in this process's memory; or a folder, in which a
            file that is deleted with the process is mapped, for banks larger than memory.

    Raises:
        MethodError: no such folder.
    """
    dtype = DTYPES[storage]
    if bank_device in (DEVICE, HOST):
        return torch.empty(count, size, dim, dtype=dtype)
    return _map_file(count * size * dim, dtype, Path(bank_device)).view(count, size, dim)


def random_bank(
    size: int, dim: int, storage: Storage = "float32", bank_device: str = DEVICE
) -> Tensor:
    """[size, dim] random rows; the arguments are those of `allocate_banks`."""
    bank = allocate_banks(1, size, dim, storage, bank_device)[0]
    set_random_rows(bank)
    return bank


def set_random_rows(bank: Tensor) -> None:
    """Draw rows [N, dim] from U(-a, a) with a = 1/sqrt(dim/3): their length is near one."""
    bound = (bank.shape[1] / 3) ** -0.5
    # Drawn in float32, in pieces, so that a mapped bank needs no second copy in memory.
    flat = bank.view(-1)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        part.copy_(torch.empty(part.shape).uniform_(-bound, bound))


def _map_file(size: int, dtype: torch.dtype, folder: Path) -> Tensor:
    if not folder.is_dir():
        raise MethodError(
            f"bank_device is 'device', 'host' or a folder; given {folder}, which is no folder."
        )
    handle, name = tempfile.mkstemp(suffix=".bank", dir=folder)
    os.close(handle)
    try:
        return torch.from_file(name, shared=True, size=size, dtype=dtype)
    finally:
        os.unlink(name)


def copy_rows(banks: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Copy rows [S, n, D] of banks [S, N, D] on the CPU to a GPU, at once, without waiting for it.

    Args:
        banks: in host memory or a mapped file.
        index: [n] int64, on the CPU.
        device: the GPU.
    """
    shape = (len(banks), len(index), banks.shape[2])
    # PyTorch keeps pinned memory for the next step, and knows when a copy has been made.
    rows = torch.empty(shape, dtype=banks.dtype, pin_memory=True)
    return torch.index_select(banks, 1, index, out=rows).to(device, non_blocking=True)


@torch.no_grad()
def update_bank(bank: Tensor, index: Tensor, rows: Tensor, momentum: float) -> None:
    """`bank[i] <- norm(momentum * bank[i] + (1 - momentum) * row)`, in place.

    A sample that comes twice in a batch leaves the row of one of its occurrences; on a GPU that may
    be numbers of both. No batch of this library holds one twice.

    Args:
        bank: [..., N, D] float32 or bfloat16; the update is computed in float32.
        index: [B] int64.
        rows: [..., B, D], of unit length.
        momentum: fraction of the old row that stays, from 0 to 1.
    """
    index, new_rows = index.to(bank.device), rows.detach().to(bank.device, torch.float32)
    if momentum:
        old_rows = bank.index_select(-2, index).float()
        new_rows = old_rows.mul_(momentum).add_(new_rows, alpha=1 - momentum)
    bank.index_copy_(-2, index, F.normalize(new_rows, dim=-1).to(bank.dtype))
