"""The devices of a run, and how networks are put on them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from cktf.engine.allocator import keep_freed_memory
from cktf.engine.settings import Training
from cktf.errors import TrainingError

_STATES = (AcceleratorState, PartialState, GradientState)


def device_of(training: Training) -> torch.device:
    """The device to train on; with the CPU the process from here on keeps the memory it frees.

    `auto` is CUDA's where PyTorch sees one, else the CPU.

    Raises:
        TrainingError: it is not there, or a launcher asks for what a run does not do.
    """
    if training.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("Device 'cuda' was asked for, and PyTorch sees none. Use device=cpu.")
    # Accelerate remembers the first choices of a process. Every run makes its own, and those of a
    # caller who uses Accelerate himself are then put back.
    kept = [dict(state._shared_state) for state in _STATES]
    try:
        for state in _STATES:
            state._shared_state.clear()
        # Left to choose, it takes Apple's GPUs too, which know no float64.
        on_cpu = training.device == "cpu" or not torch.cuda.is_available()
        made = Accelerator(cpu=on_cpu, mixed_precision="no")
        device: torch.device = made.device
        processes, steps = made.num_processes, made.gradient_accumulation_steps
    finally:
        for state, before in zip(_STATES, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(before)
    if processes > 1 or steps > 1:
        raise TrainingError(
            "A run is one process without gradient accumulation; the launcher asks for "
            f"{processes} processes and {steps} steps. Start cktf without a launcher."
        )
    if device.type == "cpu":
        keep_freed_memory()
    return device


def to_device(network: nn.Module, training: Training, device: torch.device) -> None:
    """Put a network where and how it is to compute."""
    network.to(device)
    if training.channels_last:
        network.to(memory_format=torch.channels_last)


def synchronized_time(device: torch.device) -> float:
    """The clock, in seconds, when a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def on_device(network: nn.Module, training: Training, device: torch.device) -> Iterator[None]:
    """Inside, a network that is not trained is where and how it is to compute; then as it was."""
    tensors = [t for p in network.parameters() for t in (p, p.grad) if t is not None]
    contents = [tensor.data for tensor in tensors]
    modules = list(network.modules())
    buffers = [dict(module._buffers) for module in modules]
    to_device(network, training, device)
    try:
        yield
    finally:
        for tensor, content in zip(tensors, contents, strict=True):
            tensor.data = content
        for module, own in zip(modules, buffers, strict=True):
            module._buffers.update(own)
