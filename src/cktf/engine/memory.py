"""Peak memory of a run, and advice where memory is not enough."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from cktf.contrast import ADVICE, Footprint
from cktf.data import explain_lost_worker
from cktf.errors import TrainingError

# Messages of the CPU's allocator, the CUDA driver, cuBLAS and cuDNN for too little memory. Where a
# handle of cuBLAS or cuDNN cannot be made, there is usually no room for its workspace.
_ALLOCATION_FAILED = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
# Peak memory of this process on Linux (VmHWM), and the file that resets it.
_STATUS, _RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of `peak_memory_mb`, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _RESET_PEAK.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since the reset, in MiB: of a GPU, or else of the process.

    Where the system cannot reset it, as on macOS, the peak may date from before the run.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists() and (line := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        # `ru_maxrss` starts at the peak of the parent process.
        return int(line[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def explain_out_of_memory(
    batch_size: int,
    device: torch.device,
    footprint: Footprint | None = None,
    *,
    training: bool = False,
) -> Iterator[None]:
    """Turn a failed allocation inside the block into a TrainingError that says what to change.

    A process that loads images and was stopped, as for want of memory, becomes a DataError: PyTorch
    raises that error wherever this process is at the time.

    Args:
        batch_size: number of images in a batch inside the block.
        device: device of the network.
        footprint: memory of the contrastive objectives.
        training: whether `data.batch_size` sets the batch size; that of test images is fixed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if str(error).startswith("DataLoader worker"):
            raise explain_lost_worker(error) from error
        if not is_out_of_memory(error):
            raise
        advice = []
        if training and batch_size > 2:
            advice.append(f"smaller batches, --set data.batch_size={max(2, batch_size // 2)}")
        if footprint is not None and footprint.banks:
            advice.append(f"of options.METHOD, where contrast takes {footprint}: {ADVICE}")
        if device.type == "cuda":
            advice.append("less precision, --set runtime.precision=bfloat16")
        reason = str(error).splitlines()[0][:200] if str(error) else "no more memory"
        raise TrainingError(
            f"Memory of {device} is not enough for batches of {batch_size} ({reason}). Try "
            f"{'; or '.join(advice) or 'a smaller network'}."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, for which PyTorch does not always have a type."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        said in str(error) for said in _ALLOCATION_FAILED
    )
