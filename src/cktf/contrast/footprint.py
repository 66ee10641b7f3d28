"""The memory of a contrastive objective, computed before it is built."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
import torch

from cktf.contrast.bank import DEVICE, DTYPES, HOST
from cktf.contrast.config import ContrastConfig, Estimator
from cktf.errors import MethodError
from cktf.functional.contrast import BLOCK

_FLOAT, _INT = 4, 8


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory, and the options that would make them fewer.

    Attributes:
        banks: bytes of the banks, which last for the run, by `bank_device`.
        step: bytes of a step, besides the banks.
        smaller_banks: options that make the banks smaller, by `bank_device`.
        smaller_step: options that make a step smaller.
    """

    banks: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    smaller_banks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    smaller_step: tuple[str, ...] = ()

    def __add__(self, other: "Footprint") -> "Footprint":
        """Add that of an objective which is computed after this one."""
        banks, smaller = dict(self.banks), dict(self.smaller_banks)
        for device, size in other.banks.items():
            banks[device] = banks.get(device, 0) + size
        for device, options in other.smaller_banks.items():
            smaller[device] = tuple(dict.fromkeys(smaller.get(device, ()) + options))
        larger = max(self, other, key=lambda term: term.step)
        return Footprint(banks, larger.step, smaller, larger.smaller_step)

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
        for storage, parts in self._parts(device, built=built).items():
            needed, free = sum(size for size, _ in parts), _free_bytes(storage)
            if needed > free:
                # Where each fits alone, the largest.
                large = [part for part in parts if part[0] > free] or [max(parts)]
                options = dict.fromkeys(option for _, options in large for option in options)
                raise MethodError(
                    f"Contrast needs {_format_bytes(needed)} ({self}), and {storage} has "
                    f"{_format_bytes(free)} free. Try "
                    f"{'; or '.join(options) or f'to free more of {storage}'}."
                )

    def options(self, device: torch.device) -> tuple[str, ...]:
        """Options that make the largest part on a device smaller."""
        return max(self._parts(device)[device])[1]

    def _parts(
        self, device: torch.device, *, built: bool = False
    ) -> dict[torch.device | str, list[tuple[int, tuple[str, ...]]]]:
        """Sizes by device or folder, each with the options that make it smaller."""
        parts: dict[torch.device | str, list[tuple[int, tuple[str, ...]]]] = {
            device: [(self.step, self.smaller_step)]
        }
        for bank_device, size in self.banks.items():
            storage = {DEVICE: device, HOST: torch.device("cpu")}.get(bank_device, bank_device)
            if not built or (bank_device == DEVICE and device.type != "cpu"):
                smaller = self.smaller_banks.get(bank_device, ())
                parts.setdefault(storage, []).append((size, smaller))
        return parts


def footprint(
    config: ContrastConfig, dataset_size: int, batch: int, num_pairs: int = 1
) -> Footprint:
    """Compute the memory of pairs of representations, of two banks each.

    Args:
        config: the options.
        dataset_size: N, samples in the training set.
        batch: B.
        num_pairs: pairs that share a memory.
    """
    rows, estimator = config.num_rows(dataset_size), config.chosen_estimator(dataset_size)
    negatives, bank_device, queue = config.negatives, config.bank_device, config.memory == "queue"
    row_bytes = config.embedding_dim * DTYPES[config.storage].itemsize
    step = _step_bytes(rows, negatives, estimator, row_bytes, batch)
    # A step with each option at its utmost: what does not halve it is no advice.
    least = {
        f"negatives below {negatives}": _step_bytes(rows, 1, estimator, row_bytes, batch),
        f"data.batch_size below {batch}": _step_bytes(
            rows, negatives, estimator, row_bytes, min(batch, 2)
        ),
    }
    if rows:
        least["estimator=shared"] = _step_bytes(rows, negatives, "shared", row_bytes, batch)
    smaller_step = tuple(option for option, size in least.items() if 2 * size <= step)
    if not rows:
        return Footprint(step=step, smaller_step=smaller_step)
    smaller_banks = [f"queue_size below {rows}"]
    if not queue:
        # Options that do not go with a queue.
        changed = {
            "estimator=shared": estimator == "sampled",
            "bank_device=device": bank_device != DEVICE,
        }
        options = ["memory=queue", *(o for o in changed if changed[o]), *smaller_banks]
        smaller_banks = [" and ".join(options)]
    if config.storage != "bfloat16":
        smaller_banks.append("storage=bfloat16, half the size")
    if not queue and bank_device in (DEVICE, HOST):
        shared = "" if estimator == "shared" else "estimator=shared and "
        smaller_banks.append(f"{shared}bank_device=FOLDER, which maps the banks from files")
    banks = {bank_device: 2 * num_pairs * rows * row_bytes}
    return Footprint(banks, step, {bank_device: tuple(smaller_banks)}, smaller_step)


def _step_bytes(rows: int, negatives: int, estimator: Estimator, row_bytes: int, batch: int) -> int:
    if estimator == "sampled":
        # Scores of all rows; scores of the negatives with two temporaries, their index with one.
        return batch * rows * _FLOAT + batch * negatives * (3 * _FLOAT + 2 * _INT)
    keys = negatives if estimator == "shared" else rows or batch
    mask = min(batch * keys, 4 * BLOCK)
    copied = keys * row_bytes if estimator == "shared" else 0
    return (mask + 3 * min(batch * keys, BLOCK)) * _FLOAT + copied


def _free_bytes(storage: torch.device | str) -> int:
    if isinstance(storage, str):
        return shutil.disk_usage(storage).free
    if storage.type == "cuda":
        # Memory that PyTorch holds in reserve is not free to the driver.
        reserve = torch.cuda.memory_reserved(storage) - torch.cuda.memory_allocated(storage)
        return torch.cuda.mem_get_info(storage)[0] + reserve
    return int(psutil.virtual_memory().available)


def _format_bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
