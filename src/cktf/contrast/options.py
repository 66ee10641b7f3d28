"""What can be chosen of a contrastive objective, and which choices go together."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from cktf.contrast.bank import DEVICE, DTYPES, HOST, Storage
from cktf.contrast.footprint import footprint
from cktf.contrast.memory import Bank, Estimator, InBatch, Memory, Queue
from cktf.errors import MethodError, nearest
from cktf.functional.critics import COLDEST

MemoryName = Literal["bank", "queue", "batch"]
CriticName = Literal["nce", "infonce"]
Init = Literal["random", "forward"]
_ESTIMATORS: dict[str, tuple[Estimator, ...]] = {
    "bank": ("sampled", "all", "shared"),
    "queue": ("all", "shared"),
    "batch": ("all",),
}


class ContrastOptions(TypedDict, total=False):
    """The contrastive options of `cktf.objectives.CRD`, which documents them."""

    embedding_dim: int
    negatives: int
    temperature: float
    momentum: float
    memory: MemoryName
    queue_size: int
    estimator: Estimator | None
    critic: CriticName
    storage: Storage
    place: str
    init: Init
    renormalize: Sequence[int]
    center: bool


# Numbers in a row: its heads are as long, and no footprint counts them.
_LONGEST = 65_536


def check_options(
    *,
    embedding_dim: int,
    negatives: int,
    temperature: float,
    momentum: float,
    memory: str,
    queue_size: int,
    estimator: str | None,
    critic: str,
    storage: str,
    place: str,
    init: str,
    renormalize: Sequence[int],
) -> None:
    """Raise MethodError unless the options are in their ranges and go together."""
    for name, value, known in (
        ("memory", memory, get_args(MemoryName)),
        ("estimator", estimator or "all", get_args(Estimator)),
        ("critic", critic, get_args(CriticName)),
        ("storage", storage, tuple(DTYPES)),
        ("init", init, get_args(Init)),
    ):
        if value not in known:
            raise MethodError(
                f"A contrastive objective's {name} is {' or '.join(known)}, given {value!r}. "
                f"{nearest(str(value), known)}"
            )
    rules = {
        f"embedding_dim is from 1 to {_LONGEST}, given {embedding_dim}": (
            1 <= embedding_dim <= _LONGEST
        ),
        f"negatives is 1 or more, given {negatives}": negatives >= 1,
        f"temperature is {COLDEST} or more, given {temperature}": COLDEST <= temperature < math.inf,
        f"momentum is from 0 to 1, given {momentum}": 0 <= momentum <= 1,
        f"queue_size is 2 or more, given {queue_size}": queue_size >= 2,
        f"renormalize names epochs of 1 or more, given {renormalize}": all(
            isinstance(epoch, int) and epoch >= 1 for epoch in renormalize
        ),
        f"place is device, host or a folder, given {place!r}": place in (DEVICE, HOST)
        or Path(place).is_dir(),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise MethodError(f"A contrastive objective's {'; '.join(broken)}.")
    if estimator is not None and estimator not in _ESTIMATORS[memory]:
        raise MethodError(
            f"memory={memory} goes with estimator={' or '.join(_ESTIMATORS[memory])}, given "
            f"{estimator!r}: what it holds is a sample of the training set already."
        )
    if place != DEVICE and (memory, estimator or "shared") != ("bank", "shared"):
        given = memory if estimator is None else f"{memory} with {estimator}"
        changed = "estimator=shared" if memory == "bank" else "memory=bank and estimator=shared"
        raise MethodError(
            f"place={place} is for memory=bank with estimator=shared, which moves K rows a step; "
            f"given {given}. Set {changed}, or leave place away."
        )


def new_memory(
    dataset_size: int,
    labels: Tensor | None,
    *,
    memory: MemoryName,
    negatives: int,
    estimator: Estimator | None,
    queue_size: int,
    pairs: int,
    embedding_dim: int,
    storage: Storage,
    place: str,
) -> Memory:
    """The memory that checked options describe, for so many pairs of representations.

    Without a name the estimator is `shared` for a bank of more than K rows, else `all`.

    Raises:
        MethodError: the banks of all pairs do not fit; nothing was allocated.
    """
    rows = {"bank": dataset_size, "queue": queue_size, "batch": 0}[memory]
    if estimator is None:
        # K draws of no more than K rows would cost more than all of them.
        drawn = memory == "bank" and (dataset_size > negatives or place != DEVICE)
        estimator = "shared" if drawn else "all"
    footprint(
        rows=rows, queue=memory == "queue", negatives=negatives, estimator=estimator, pairs=pairs,
        dim=embedding_dim, storage=storage, place=place, batch=1,
    ).check(torch.device("cpu"))  # fmt: skip
    if memory == "batch":
        return InBatch(dataset_size, labels)
    if memory == "queue":
        return Queue(dataset_size, labels, negatives, estimator, queue_size)
    return Bank(dataset_size, labels, negatives, estimator)
