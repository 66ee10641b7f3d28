"""The device, precision and seed of a run, chosen once and handed down."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from cktf.engine.allocator import keep_freed_memory
from cktf.engine.config import Precision, RuntimeConfig
from cktf.engine.determinism import gpu_algorithms, set_deterministic_cublas
from cktf.engine.launcher import check_launcher, without_launcher_variables
from cktf.errors import TrainingError
from cktf.functional.precision import RoundedProducts, has_fast_bfloat16
from cktf.processes import num_processes
from cktf.taps import needs_contiguous_images


@dataclass(frozen=True)
class Runtime:
    """Device, precision and seed of a run.

    Attributes:
        processes: Accelerate's state of the processes. An `Accelerator` would also set precision
            and accumulation for the whole process, and clash with a user's own.
        device: where the networks compute.
        precision: of the networks: `auto`, `float32` or `bfloat16`.
        channels_last: whether networks are in channels-last memory format.
        seed: random seed (weights, order, augmentation, negatives).
        deterministic: whether a GPU computes the same bits each time.
    """

    processes: PartialState
    device: torch.device
    precision: Precision = "auto"
    channels_last: bool = True
    seed: int = 0
    deterministic: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Data type that the networks compute in; of `auto` bfloat16 where that is faster."""
        is_fast = self.precision == "auto" and has_fast_bfloat16(self.device)
        return torch.bfloat16 if self.precision == "bfloat16" or is_fast else torch.float32

    def reset_seed(self) -> None:
        """Seed Python's, NumPy's and PyTorch's random generators.

        A run does so three times: before the student's weights, before the objective's weights, and
        before training. So none of them depends on how much the one before has drawn.
        """
        set_seed(self.seed)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run networks in the precision of the run, on any hardware.

        A CPU that does not multiply bfloat16 emulates it, in about float32's time.
        """
        enabled = self.dtype == torch.bfloat16
        emulated = enabled and self.device.type == "cpu" and not has_fast_bfloat16(self.device)
        with (
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled),
            RoundedProducts() if emulated else nullcontext(),
        ):
            yield

    def gpu_algorithms(self) -> AbstractContextManager[None]:
        """Let a GPU compute by deterministic algorithms, or by the fastest; restore on exit."""
        return gpu_algorithms(self.device, deterministic=self.deterministic)

    def to_device(self, network: nn.Module) -> None:
        """Move a network to the device, in the memory format of the run, or in the one it needs."""
        network.to(self.device)
        if self.channels_last and not needs_contiguous_images(network):
            network.to(memory_format=torch.channels_last)

    @contextmanager
    def on_device(self, network: nn.Module) -> Iterator[None]:
        """Move a network that is not trained to the device temporarily; restore on exit."""
        tensors = [(t, t.data) for p in network.parameters() for t in (p, p.grad) if t is not None]
        # TorchScript has no dictionary of buffers to change.
        modules = [m for m in network.modules() if not isinstance(m, torch.jit.ScriptModule)]
        buffers = [(module, dict(module._buffers)) for module in modules]
        self.to_device(network)
        try:
            yield
        finally:
            for tensor, content in tensors:
                tensor.data = content
            for module, before in buffers:
                module._buffers.update(before)


@contextmanager
def default_tensors() -> Iterator[None]:
    """Make new tensors float32 and on the CPU; restore the defaults of the user's process on exit.

    Networks and adapters are built in float32, and data are loaded on the CPU.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # A device as a context slows every operation.
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def start_runtime(config: RuntimeConfig, seed: int = 0) -> Runtime:
    """Build the runtime of a run; on the CPU, also set the memory allocator of this process.

    Raises:
        TrainingError: the device is missing, a launcher asks for several processes or gradient
            accumulation, or it is too late for a GPU to be deterministic.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("runtime.device is cuda, and PyTorch sees no such device. Use cpu.")
    check_launcher()
    # Accelerate would choose Apple's GPUs too, which have no float64.
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")
    if device.type == "cuda" and config.deterministic:
        set_deterministic_cublas()
    with without_launcher_variables():
        processes = PartialState(cpu=not has_cuda)
    if (count := max(processes.num_processes, num_processes())) > 1:
        raise TrainingError(
            f"A run is one process, and this one computes together with {count - 1} more. Start it "
            "in a process of its own."
        )
    if device.type == "cpu":
        keep_freed_memory()
    return Runtime(
        processes, device, config.precision, config.channels_last, seed, config.deterministic
    )


def start_available_runtime(config: RuntimeConfig, seed: int = 0) -> Runtime:
    """Build the runtime for a trained network: without a GPU, `cuda` becomes `cpu`.

    `deterministic` is about training, and asks nothing of the process here.
    """
    update: dict[str, Any] = {"deterministic": False}
    if not torch.cuda.is_available():
        update["device"] = "cpu"
    return start_runtime(config.model_copy(update=update), seed)


def synchronized_time(device: torch.device) -> float:
    """Wait until a device has finished its queued work; return the clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
