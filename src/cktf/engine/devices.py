"""The devices of a run, and how networks are put on them."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn

from cktf.engine.settings import Training
from cktf.errors import TrainingError


def accelerator(training: Training) -> Accelerator:
    """The devices to train on, and the seed of everything random."""
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("Device 'cuda' was asked for, and PyTorch sees none. Use device=cpu.")
    # Accelerate remembers the first device of a process; every run chooses its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    made = Accelerator(cpu=training.device == "cpu", mixed_precision="no")
    if made.num_processes > 1 or made.gradient_accumulation_steps > 1:
        raise TrainingError(
            "A run is one process without gradient accumulation; the launcher asks for "
            f"{made.num_processes} processes and {made.gradient_accumulation_steps} steps. Start "
            "cktf without a launcher."
        )
    set_seed(training.seed)
    return made


def place(network: nn.Module, training: Training, device: torch.device) -> None:
    """Put a network where and how it is to compute."""
    network.to(device)
    if training.channels_last:
        network.to(memory_format=torch.channels_last)
