"""The training loop, evaluation and run folders."""

from cktf.engine.evaluate import Accuracy, evaluate
from cktf.engine.progress import announce
from cktf.engine.run_folder import RunFolder, write_atomically
from cktf.engine.settings import Training, autocast_dtype, peak_memory_mb
from cktf.engine.trainer import MAIN, Fitted, Stage, Trainer, accelerator, place

__all__ = [
    "MAIN",
    "Accuracy",
    "Fitted",
    "RunFolder",
    "Stage",
    "Trainer",
    "Training",
    "accelerator",
    "announce",
    "autocast_dtype",
    "evaluate",
    "peak_memory_mb",
    "place",
    "write_atomically",
]
