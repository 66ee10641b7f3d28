"""The training loop, evaluation and run folders."""

from cktf.engine.checkpoints import write_atomically
from cktf.engine.devices import device_of, place, placed, settled
from cktf.engine.environment import describe_device, environment
from cktf.engine.evaluate import Accuracy, evaluate, standard_error
from cktf.engine.numbers import enough_memory, gradient_norm, lacks_memory
from cktf.engine.progress import announce
from cktf.engine.randomness import seeded, undrawn
from cktf.engine.run_folder import RunFolder
from cktf.engine.settings import (
    OnNonFinite,
    Training,
    autocast,
    autocast_dtype,
    in_precision,
    peak_memory_mb,
)
from cktf.engine.signals import interrupting
from cktf.engine.stage import MAIN, Stage, statistics_kept
from cktf.engine.tracking import tracked, trackers_of
from cktf.engine.trainer import Fitted, Trainer

__all__ = [
    "MAIN",
    "Accuracy",
    "Fitted",
    "OnNonFinite",
    "RunFolder",
    "Stage",
    "Trainer",
    "Training",
    "announce",
    "autocast",
    "autocast_dtype",
    "describe_device",
    "device_of",
    "enough_memory",
    "environment",
    "evaluate",
    "gradient_norm",
    "in_precision",
    "interrupting",
    "lacks_memory",
    "peak_memory_mb",
    "place",
    "placed",
    "seeded",
    "settled",
    "standard_error",
    "statistics_kept",
    "tracked",
    "trackers_of",
    "undrawn",
    "write_atomically",
]
