"""The memory of a contrastive objective, computed before it is built."""

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from cktf.contrast.bank import DEVICE, DTYPES, HOST
from cktf.contrast.config import ContrastConfig
from cktf.errors import MethodError
from cktf.functional.contrast import block_size
from cktf.machine import available_memory

_FLOAT, _INT = 4, 8
ADVICE = (
    "for smaller banks memory=queue with a smaller queue_size, storage=bfloat16, or "
    "estimator=shared with bank_device=FOLDER, which maps the banks from files; for a smaller step "
    "fewer negatives, estimator=shared, or smaller batches"
)


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory.

    Attributes:
        banks: bytes of the banks, which last for the run, by `bank_device`.
        step: bytes of a step, besides the banks.
    """

    banks: Mapping[str, int] = field(default_factory=dict)
    step: int = 0

    def __add__(self, other: "Footprint") -> "Footprint":
        """Add that of an objective which is computed after this one."""
        banks = Counter(self.banks) + Counter(other.banks)
        return Footprint(dict(banks), max(self.step, other.step))

    def __str__(self) -> str:
        """Describe it in a line.

        >>> print(Footprint({"device": 512_000_000, "/data": 2_000_000_000}, 40_000_000))
        banks 512.0 MB (device) and 2.0 GB (/data), a step 40.0 MB
        """
        banks = " and ".join(
            f"{_format_bytes(size)} ({device})" for device, size in self.banks.items()
        )
        return f"{f'banks {banks}' if banks else 'no banks'}, a step {_format_bytes(self.step)}"

    def check(self, device: torch.device, *, built: bool = False) -> None:
        """Raise MethodError where memory or disk space is not enough.

        Args:
            device: the device of the steps.
            built: the banks are in host memory already, or in their files.
        """
        needed_bytes: dict[torch.device | str, int] = {device: self.step}
        for bank_device, size in self.banks.items():
            storage = {DEVICE: device, HOST: torch.device("cpu")}.get(bank_device, bank_device)
            if not built or (bank_device == DEVICE and device.type != "cpu"):
                needed_bytes[storage] = needed_bytes.get(storage, 0) + size
        for storage, needed in needed_bytes.items():
            free = _free(storage)
            if needed > free:
                raise MethodError(
                    f"Contrast needs {_format_bytes(needed)} ({self}), and {storage} has "
                    f"{_format_bytes(free)} free. Try {ADVICE}."
                )


def footprint(
    config: ContrastConfig, dataset_size: int, batch: int, num_pairs: int = 1
) -> Footprint:
    """Compute the memory of pairs of representations, of two banks each.

    A step is that of a GPU where there is one, which computes all sides of all pairs together.

    Args:
        config: the options.
        dataset_size: N, samples in the training set.
        batch: B.
        num_pairs: pairs that share a memory.
    """
    rows, estimator = config.num_rows(dataset_size), config.chosen_estimator(dataset_size)
    row_bytes = config.embedding_dim * DTYPES[config.storage].itemsize
    has_gpu = torch.cuda.is_available()
    block = block_size(torch.device("cuda" if has_gpu else "cpu"))
    if estimator == "sampled":
        # Scores of all rows; scores of the negatives with two temporaries, their index with one.
        step = batch * rows * _FLOAT + batch * config.negatives * (3 * _FLOAT + 2 * _INT)
    else:
        keys = config.negatives if estimator == "shared" else rows or batch
        sides = min(2 * num_pairs, max(1, block // (batch * keys))) if has_gpu else 1
        mask = min(batch * keys, 4 * block)
        copied = sides * keys * row_bytes if estimator == "shared" else 0
        step = (mask + 3 * min(sides * batch * keys, block)) * _FLOAT + copied
    return Footprint({config.bank_device: 2 * num_pairs * rows * row_bytes} if rows else {}, step)


def _free(storage: torch.device | str) -> int:
    if isinstance(storage, str):
        return shutil.disk_usage(storage).free
    if storage.type == "cuda":
        # Memory that PyTorch holds in reserve is not free to the driver.
        reserve = torch.cuda.memory_reserved(storage) - torch.cuda.memory_allocated(storage)
        return torch.cuda.mem_get_info(storage)[0] + reserve
    return available_memory()


def _format_bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
