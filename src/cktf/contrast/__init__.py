"""The contrastive engine: memories, draws of negatives, and what they take.

The losses over them are in `cktf.functional`.
"""

from cktf.contrast.bank import DEVICE, DTYPES, Storage, random_bank, rows_of, update_bank
from cktf.contrast.footprint import Footprint, footprint
from cktf.contrast.memory import Bank, Draw, Estimator, InBatch, Memory, Queue
from cktf.contrast.negatives import NegativeSampler
from cktf.contrast.options import (
    ContrastOptions,
    CriticName,
    Init,
    MemoryName,
    check_options,
    new_memory,
)

__all__ = [
    "DEVICE",
    "DTYPES",
    "Bank",
    "ContrastOptions",
    "CriticName",
    "Draw",
    "Estimator",
    "Footprint",
    "InBatch",
    "Init",
    "Memory",
    "MemoryName",
    "NegativeSampler",
    "Queue",
    "Storage",
    "check_options",
    "footprint",
    "new_memory",
    "random_bank",
    "rows_of",
    "update_bank",
]
