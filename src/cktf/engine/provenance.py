"""The code, machine and precision behind a result, for its record."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from cktf import __version__
from cktf.functional.precision import has_fast_bfloat16

# Instruction sets that decide which kernels oneDNN and PyTorch choose, as /proc/cpuinfo names them.
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16")
_PACKAGES = ("torch", "torchvision", "accelerate", "numpy")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Describe what computed a result, so that tables can mark results of unlike engines.

    Args:
        device: where the networks ran.
        dtype: data type that the networks computed in.

    Returns:
        `device`, `precision`, `bfloat16` (`multiplied` by the hardware, `emulated` by rounding
        operands of float32 products, None for float32), `cpu` (model), `cpu_flags`, `threads`,
        `commit` (None for an installed package; `-dirty` where files of the package differ from
        it), `versions`.
    """
    bfloat16 = None
    if dtype == torch.bfloat16:
        bfloat16 = "multiplied" if has_fast_bfloat16(device) else "emulated"
    cpu, cpu_flags = _cpu()
    return {
        "device": describe_device(device),
        "precision": str(dtype).removeprefix("torch."),
        "bfloat16": bfloat16,
        "cpu": cpu,
        "cpu_flags": list(cpu_flags),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "cktf": __version__,
            # The build tag after the "+", as of 2.6.0+cu124, is left out.
            **{name: importlib.metadata.version(name).partition("+")[0] for name in _PACKAGES},
        },
    }


def describe_device(device: torch.device) -> str:
    """Name a device as summaries do: the GPU's own name, or the CPU's architecture and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


@functools.cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    """Model and instruction sets of the CPU; no sets where the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    words = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or platform.machine()
    return model, tuple(flag for flag in _FLAGS if flag in words)


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that the package is imported from; None for an installed one."""
    package = Path(__file__).resolve().parents[1]
    try:
        root = Path(_git(package, "rev-parse", "--show-toplevel"))
        # An installed package may lie in the checkout of another project.
        if package != root / "src" / "cktf":
            return None
        changed = _git(package, "status", "--porcelain", "--", str(package))
        return _git(package, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
