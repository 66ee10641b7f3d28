"""The contrastive engine: memories, draws of negatives, and their footprint.

The losses over them are in `cktf.functional`.
"""

from cktf.contrast.bank import (
    DEVICE,
    DTYPES,
    Storage,
    allocate_banks,
    copy_rows,
    random_bank,
    set_random_rows,
    update_bank,
)
from cktf.contrast.config import ContrastConfig, Estimator
from cktf.contrast.footprint import ADVICE, Footprint, footprint
from cktf.contrast.memory import Bank, Draw, InBatch, Memory, Queue, build_memory
from cktf.contrast.negatives import NegativeSampler

__all__ = [
    "ADVICE",
    "DEVICE",
    "DTYPES",
    "Bank",
    "ContrastConfig",
    "Draw",
    "Estimator",
    "Footprint",
    "InBatch",
    "Memory",
    "NegativeSampler",
    "Queue",
    "Storage",
    "allocate_banks",
    "build_memory",
    "copy_rows",
    "footprint",
    "random_bank",
    "set_random_rows",
    "update_bank",
]
