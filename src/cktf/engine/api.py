"""The public names of `cktf.engine`, which imports this module at their first use."""

from cktf.engine.accuracy import Accuracy, evaluate, standard_error
from cktf.engine.callbacks import Callback
from cktf.engine.config import (
    CheckpointConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
)
from cktf.engine.epoch_metrics import gradient_norm
from cktf.engine.interleaved import fit_interleaved
from cktf.engine.memory import explain_out_of_memory, is_out_of_memory, peak_memory_mb
from cktf.engine.progress import announce
from cktf.engine.provenance import describe_device, environment
from cktf.engine.randomness import preserve_rng, seeded
from cktf.engine.result import TrainResult
from cktf.engine.run_folder import RunFolder, check_output_file, check_output_folder
from cktf.engine.runtime import (
    Runtime,
    default_tensors,
    start_available_runtime,
    start_runtime,
    synchronized_time,
)
from cktf.engine.step import MAIN, TrainPhase, TrainStep, preserve_buffers
from cktf.engine.tracking import Trackers, available_trackers
from cktf.engine.trainer import Trainer

__all__ = [
    "MAIN",
    "Accuracy",
    "Callback",
    "CheckpointConfig",
    "OptimizerConfig",
    "RunFolder",
    "Runtime",
    "RuntimeConfig",
    "ScheduleConfig",
    "Trackers",
    "TrainPhase",
    "TrainResult",
    "TrainStep",
    "Trainer",
    "TrainingConfig",
    "announce",
    "available_trackers",
    "check_output_file",
    "check_output_folder",
    "default_tensors",
    "describe_device",
    "environment",
    "evaluate",
    "explain_out_of_memory",
    "fit_interleaved",
    "gradient_norm",
    "is_out_of_memory",
    "peak_memory_mb",
    "preserve_buffers",
    "preserve_rng",
    "seeded",
    "standard_error",
    "start_available_runtime",
    "start_runtime",
    "synchronized_time",
]
