"""How a network is trained, in plain values, and what the machine does best."""

import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from cktf.functional.precision import RoundedProducts, multiplies_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
ScheduleName = Literal["onecycle", "multistep"]
OnNonFinite = Literal["stop", "skip"]

# Of this process, on Linux: what it holds and has held, and how it forgets what it has.
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Training:
    """Everything the loop is told.

    Attributes:
        epochs: passes over the training set.
        lr: peak learning rate of SGD.
        momentum, weight_decay, nesterov: of SGD.
        clip: length to which a longer gradient is shortened; None leaves it.
        schedule: `onecycle` (up for 30 % of the steps, then down to zero by a cosine) or
            `multistep` (times `gamma` at each milestone).
        milestones: fractions of the run at which `multistep` steps.
        gamma: what `multistep` multiplies the rate with.
        seed: of everything random.
        precision: of the networks; losses are formed in float32 whatever it says.
        channels_last: memory format of the networks and images.
        device: `cpu`, `cuda`, or `auto`: CUDA where PyTorch sees it, else the CPU, also where there
            is another GPU.
        on_nonfinite: `stop` at a loss or gradient that is not finite, or `skip` such a step.
        checkpoint_epochs: save after every so many epochs; 0 for never.
        checkpoint_minutes: and whenever so much time has passed, also inside an epoch; 0 for never.
    """

    epochs: int
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    clip: float | None = None
    schedule: ScheduleName = "onecycle"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    gamma: float = 0.1
    seed: int = 0
    precision: Precision = "auto"
    channels_last: bool = True
    device: str = "auto"
    on_nonfinite: OnNonFinite = "stop"
    checkpoint_epochs: int = 0
    checkpoint_minutes: float = 5.0


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type that networks compute in; None for float32.

    `auto` is bfloat16 where the hardware multiplies it faster than float32.
    """
    if precision == "float32":
        return None
    if precision == "bfloat16" or multiplies_bfloat16(device):
        return torch.bfloat16
    return None


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within it, networks compute in this precision, on any hardware.

    bfloat16 asked for by name costs about float32's time on a CPU that does not multiply it.
    """
    dtype = autocast_dtype(precision, device)
    emulated = dtype is not None and device.type == "cpu" and not multiplies_bfloat16(device)
    with (
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
        RoundedProducts() if emulated else nullcontext(),
    ):
        yield


def in_precision(
    network: Callable[[Tensor], Tensor], precision: Precision, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The network in this precision, and what stands around its call, like loading, in its own."""

    def forward(images: Tensor) -> Tensor:
        with autocast(precision, device):
            return network(images)

    return forward


def reset_peak_memory(device: torch.device) -> None:
    """Have `peak_memory_mb` tell of what is held from here on, where the system can forget."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _FORGET.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory held since the run began, in MiB: of a GPU, or else of the process.

    Where a process cannot forget, as on macOS, it may be what it held before the run.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists() and (told := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        # `ru_maxrss` begins at what the process held that started this one.
        return int(told[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
