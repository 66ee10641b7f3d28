"""What a contrastive objective takes of memory, known before it is built."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil
import torch

from cktf.contrast.bank import DEVICE, DTYPES, HOST, Storage
from cktf.contrast.memory import Estimator
from cktf.errors import MethodError
from cktf.functional.contrast import BLOCK

_FLOAT, _INT = 4, 8


@dataclass(frozen=True)
class Footprint:
    """Bytes of memory, and the options that would make them fewer.

    Attributes:
        banks: kept for the run, and in its checkpoints, by place.
        step: worked with during a step, beside them.
        smaller_banks: options that make the banks of a place smaller.
        smaller_step: options that make a step smaller.
    """

    banks: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    smaller_banks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    smaller_step: tuple[str, ...] = ()

    def __add__(self, other: "Footprint") -> "Footprint":
        """Of two objectives that are computed one after the other."""
        banks, smaller = dict(self.banks), dict(self.smaller_banks)
        for place, size in other.banks.items():
            banks[place] = banks.get(place, 0) + size
        for place, options in other.smaller_banks.items():
            smaller[place] = tuple(dict.fromkeys(smaller.get(place, ()) + options))
        larger = max(self, other, key=lambda term: term.step)
        return Footprint(banks, larger.step, smaller, larger.smaller_step)

    def __str__(self) -> str:
        """For people.

        >>> print(Footprint({"device": 512_000_000, "/data": 2_000_000_000}, 40_000_000))
        banks 512.0 MB (device) and 2.0 GB (/data), a step 40.0 MB
        """
        banks = " and ".join(f"{_size(size)} ({place})" for place, size in self.banks.items())
        return f"{f'banks {banks}' if banks else 'no banks'}, a step {_size(self.step)}"

    def check(self, device: torch.device, *, built: bool = False) -> None:
        """Raise MethodError where there is not so much free.

        Args:
            device: that steps are computed on.
            built: whether the banks are in host memory already, or in their files.
        """
        for where, parts in self._parts(device, built=built).items():
            needed, free = sum(size for size, _ in parts), _free(where)
            if needed > free:
                # Where each fits alone, the largest.
                large = [part for part in parts if part[0] > free] or [max(parts)]
                options = dict.fromkeys(option for _, options in large for option in options)
                raise MethodError(
                    f"Contrast needs {_size(needed)} ({self}), and {where} has {_size(free)} free. "
                    f"Try {'; or '.join(options) or f'to free more of {where}'}."
                )

    def options(self, device: torch.device) -> tuple[str, ...]:
        """Those that make smaller what is largest on a device in training."""
        return max(self._parts(device)[device])[1]

    def _parts(
        self, device: torch.device, *, built: bool = False
    ) -> dict[torch.device | str, list[tuple[int, tuple[str, ...]]]]:
        """What devices and folders have yet to hold: sizes, each with options for a smaller one."""
        parts: dict[torch.device | str, list[tuple[int, tuple[str, ...]]]] = {
            device: [(self.step, self.smaller_step)]
        }
        for place, size in self.banks.items():
            where = {DEVICE: device, HOST: torch.device("cpu")}.get(place, place)
            if not built or (place == DEVICE and device.type != "cpu"):
                parts.setdefault(where, []).append((size, self.smaller_banks.get(place, ())))
        return parts


def footprint(
    *,
    rows: int,
    queue: bool,
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
        queue: whether their number is queue_size.
        negatives: K.
        estimator: which rows a batch is contrasted with.
        pairs: of two banks each.
        dim: D, length of a row.
        storage: type of the rows.
        place: of the banks.
        batch: B.
    """
    row = dim * DTYPES[storage].itemsize
    step = _step(rows, negatives, estimator, row, batch)
    # A step with each option at its utmost: what does not halve it is no advice.
    fewest = {
        f"negatives below {negatives}": _step(rows, 1, estimator, row, batch),
        f"data.batch_size below {batch}": _step(rows, negatives, estimator, row, min(batch, 2)),
    }
    if rows:
        fewest["estimator=shared"] = _step(rows, negatives, "shared", row, batch)
    smaller_step = tuple(option for option, least in fewest.items() if 2 * least <= step)
    if not rows:
        return Footprint(step=step, smaller_step=smaller_step)
    smaller = [f"queue_size below {rows}"]
    if not queue:
        # Options that do not go with a queue.
        changed = {"estimator=shared": estimator == "sampled", "place=device": place != DEVICE}
        smaller = [" and ".join(["memory=queue", *(o for o in changed if changed[o]), *smaller])]
    if storage != "bfloat16":
        smaller.append("storage=bfloat16, half the size")
    if not queue and place in (DEVICE, HOST):
        shared = "" if estimator == "shared" else "estimator=shared and "
        smaller.append(f"{shared}place=FOLDER, which maps the banks from files")
    return Footprint({place: 2 * pairs * rows * row}, step, {place: tuple(smaller)}, smaller_step)


def _step(rows: int, negatives: int, estimator: Estimator, row: int, batch: int) -> int:
    if estimator == "sampled":
        # Scores of all rows, of those chosen with two temporaries, their index with one.
        return batch * rows * _FLOAT + batch * negatives * (3 * _FLOAT + 2 * _INT)
    keys = negatives if estimator == "shared" else rows or batch
    mask = min(batch * keys, 4 * BLOCK)
    copied = keys * row if estimator == "shared" else 0
    return (mask + 3 * min(batch * keys, BLOCK)) * _FLOAT + copied


def _free(where: torch.device | str) -> int:
    if isinstance(where, str):
        return shutil.disk_usage(where).free
    if where.type == "cuda":
        # What PyTorch keeps for later counts as taken there.
        kept = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return torch.cuda.mem_get_info(where)[0] + kept
    return int(psutil.virtual_memory().available)


def _size(bytes_: int) -> str:
    value = float(bytes_)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
