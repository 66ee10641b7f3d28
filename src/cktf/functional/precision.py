"""What the hardware multiplies well and by what, and what stays float32 whatever it does well."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32's; where they are emulated, far slower."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


@torch.no_grad()
def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of two matrices of one type, without a gradient.

    On a CPU, float32 goes to oneDNN. MKL, which `@` calls, leaves AVX-512 unused on processors of
    AMD, and takes twice the time there.
    """
    if left.device.type == "cpu" and left.dtype == torch.float32 and (linear := _onednn()):
        return linear(left, right.t(), None, "none", [], "")
    return left @ right


@functools.cache
def _onednn() -> Callable[..., Tensor] | None:
    """PyTorch's own name for `left @ right.t()` by oneDNN, where it has that and it is right.

    It is what `torch.compile` calls; the public way there takes a copy of the result.
    """
    left, right = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        agrees = torch.equal(linear(left, right, None, "none", [], ""), left @ right.t())
    except (AttributeError, RuntimeError):
        return None
    return linear if agrees else None


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function without autocast around it, which would round its products."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(_devices([*args, *kwargs.values()]), "cpu")
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def _devices(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.device.type
        elif isinstance(value, list | tuple):
            yield from _devices(value)
