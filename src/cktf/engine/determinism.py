"""How a GPU computes during a run: the same bits each time, or as fast as it can."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cktf.errors import TrainingError

_CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# The values with which cuBLAS repeats its results; the first is faster.
_DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")


def set_deterministic_cublas() -> None:
    """Set the environment variable that cuBLAS reads once, when CUDA starts; it stays set.

    Raises:
        TrainingError: it has another value, or CUDA has started in this process without it.
    """
    best = _DETERMINISTIC_CUBLAS[0]
    if (value := os.environ.get(_CUBLAS_VARIABLE)) in _DETERMINISTIC_CUBLAS:
        return
    if value is not None:
        raise TrainingError(
            f"runtime.deterministic needs {_CUBLAS_VARIABLE}={' or '.join(_DETERMINISTIC_CUBLAS)}, "
            f"and the environment sets it to {value!r}. Unset it, or set it to {best}."
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise TrainingError(
            f"runtime.deterministic needs {_CUBLAS_VARIABLE}={best} in the environment before CUDA "
            "starts, and this process has used CUDA already. Set it before Python starts, or by "
            f"os.environ[{_CUBLAS_VARIABLE!r}] = {best!r} before anything is put on the GPU."
        )
    os.environ[_CUBLAS_VARIABLE] = best


@contextmanager
def gpu_algorithms(device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Choose the algorithms of a GPU inside the block; restore the process's choice on exit.

    They are deterministic, or else cuDNN measures which convolutions are fastest for each shape,
    unless the process asks for deterministic ones itself. On a CPU nothing changes: there they are
    deterministic as they are.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    mode = torch.get_deterministic_debug_mode()
    try:
        if deterministic:
            cudnn.deterministic, cudnn.benchmark = True, False
            torch.use_deterministic_algorithms(True)
        elif not (mode or cudnn.deterministic):
            cudnn.benchmark = True
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.set_deterministic_debug_mode(mode)
