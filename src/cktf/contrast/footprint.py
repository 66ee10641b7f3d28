"""What a contrastive objective takes of memory, known before it is built."""

import shutil
from dataclasses import dataclass

import psutil
import torch

from cktf.contrast.bank import DEVICE, DTYPES, HOST, Storage
from cktf.contrast.memory import Estimator
from cktf.errors import MethodError
from cktf.functional.contrast import BLOCK

_FLOAT, _INT = 4, 8


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory.

    Attributes:
        banks: kept for the run, and in its checkpoints.
        step: worked with during a step, beside them.
        place: of the banks.
    """

    banks: int = 0
    step: int = 0
    place: str = DEVICE

    def __add__(self, other: "Footprint") -> "Footprint":
        """Of two objectives that are computed one after the other."""
        place = self.place if self.banks else other.place
        return Footprint(self.banks + other.banks, max(self.step, other.step), place)

    def __str__(self) -> str:
        """For people.

        >>> print(Footprint(512_000_000, 40_000_000))
        banks 512.0 MB (device), a step 40.0 MB
        """
        return f"banks {_size(self.banks)} ({self.place}), a step {_size(self.step)}"

    def check(self, device: torch.device, *, built: bool = False) -> None:
        """Raise MethodError where there is not so much free.

        Args:
            device: that steps are computed on.
            built: whether the banks are in host memory already, or in their files.
        """
        banks_at = device if self.place == DEVICE else torch.device("cpu")
        needs = {device: self.step}
        if self.place not in (DEVICE, HOST):
            free = shutil.disk_usage(self.place).free
            if not built and self.banks > free:
                raise _too_much(self, self.banks, self.place, free)
        elif not built or banks_at.type != "cpu":
            needs[banks_at] = needs.get(banks_at, 0) + self.banks
        for where, needed in needs.items():
            if needed > (free := _free(where)):
                raise _too_much(self, needed, where.type, free)


def _too_much(footprint: Footprint, needed: int, where: str, free: int) -> MethodError:
    return MethodError(
        f"Contrast needs {_size(needed)} ({footprint}), and {where} has {_size(free)} free. "
        f"{_ADVICE}"
    )


_ADVICE = (
    "Use memory=queue, of queue_size rows whatever the training set; or storage=bfloat16, half "
    "the size; or estimator=shared with place=FOLDER, which maps the banks from files."
)


def footprint(
    *,
    rows: int,
    negatives: int,
    estimator: Estimator,
    pairs: int,
    dim: int,
    storage: Storage,
    place: str,
    batch: int,
) -> Footprint:
    """What pairs of representations take that share a memory.

    Args:
        rows: of each bank; 0 where the batch itself is the memory.
        negatives: K.
        estimator: which rows a batch is contrasted with.
        pairs: of two banks each.
        dim: D, length of a row.
        storage: type of the rows.
        place: of the banks.
        batch: B.
    """
    row = dim * DTYPES[storage].itemsize
    scores = batch * rows
    if estimator == "sampled":
        drawn = batch * negatives
        # Scores of all rows, of those chosen with two temporaries, their index with one.
        step = scores * _FLOAT + drawn * (3 * _FLOAT + 2 * _INT)
    else:
        keys = negatives if estimator == "shared" else rows or batch
        mask = min(batch * keys, 4 * BLOCK)
        copied = keys * row if estimator == "shared" else 0
        step = (mask + 3 * min(batch * keys, BLOCK)) * _FLOAT + copied
    return Footprint(2 * pairs * rows * row, step, place)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _size(bytes_: int) -> str:
    value = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
