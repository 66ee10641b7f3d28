"""The training loop, evaluation and run folders."""

from cktf.engine.devices import device_of, on_device, synchronized_time, to_device
from cktf.engine.environment import describe_device, environment
from cktf.engine.epoch_metrics import enough_memory, gradient_norm, is_out_of_memory
from cktf.engine.evaluate import Accuracy, evaluate, standard_error
from cktf.engine.phase import MAIN, Stage, statistics_kept
from cktf.engine.progress import announce
from cktf.engine.randomness import preserve_rng, seeded
from cktf.engine.run_folder import RunFolder
from cktf.engine.settings import (
    OnNonFinite,
    Training,
    autocast,
    autocast_dtype,
    in_precision,
    peak_memory_mb,
)
from cktf.engine.tracking import tracked, trackers_of
from cktf.engine.trainer import Trainer, TrainResult

__all__ = [
    "MAIN",
    "Accuracy",
    "OnNonFinite",
    "RunFolder",
    "Stage",
    "TrainResult",
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
    "is_out_of_memory",
    "on_device",
    "peak_memory_mb",
    "preserve_rng",
    "seeded",
    "standard_error",
    "statistics_kept",
    "synchronized_time",
    "to_device",
    "tracked",
    "trackers_of",
]
