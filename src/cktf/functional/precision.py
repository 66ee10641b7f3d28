"""Precision of products: hardware support of bfloat16, its emulation, and float32 losses."""

import functools
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
T = TypeVar("T")

# Functions whose operands autocast rounds, by the names that layers call.
_PRODUCTS = frozenset(
    {
        torch.conv1d, torch.conv2d, torch.conv3d,
        torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
        F.linear, F.scaled_dot_product_attention,
        torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm,
        torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm,
    }
)  # fmt: skip
_ROUNDED = (torch.float32, torch.bfloat16, torch.float16)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32's; where they are emulated, far slower.

    Instructions alone do not decide: a Xeon with AVX512-BF16 but without AMX is faster in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return _cpu_supports("_is_amx_tile_supported") or (
        _cpu_supports("_is_avx512_bf16_supported") and not _is_intel()
    )


def _cpu_supports(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())


@functools.cache
def _is_intel() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    name = cpuinfo.read_text() if cpuinfo.is_file() else platform.processor()
    return "GenuineIntel" in name


class RoundedProducts(TorchFunctionMode):
    """Emulate autocast's bfloat16 on a CPU: operands are rounded, and multiplied in float32.

    Operands, results and the gradients of both have bfloat16's values; between them a layer takes
    float32's time, of which PyTorch's own emulation takes a multiple. Products
    within another of PyTorch's functions (`torch.nn.MultiheadAttention`, `torch.einsum`) are left
    to that emulation.
    A network that recomputes its activations (`torch.utils.checkpoint`) needs float32 here, since
    PyTorch recomputes without this mode.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function; a product is formed in float32 from rounded operands."""
        keywords = kwargs or {}
        if not (
            func in _PRODUCTS
            and torch.is_autocast_enabled("cpu")
            and any(map(_is_rounded, (*args, *keywords.values())))
            and "out" not in keywords
        ):
            return func(*args, **keywords)
        with torch.autocast("cpu", enabled=False):
            rounded = {name: _round(value) for name, value in keywords.items()}
            return func(*map(_round, args), **rounded).bfloat16()


def _is_rounded(value: Any) -> bool:
    """Whether autocast rounds a value: it leaves float64, integers and masks as they are."""
    return isinstance(value, Tensor) and value.dtype in _ROUNDED


def _round(value: Any) -> Any:
    return value.bfloat16().float() if _is_rounded(value) else value


@torch.no_grad()
def fast_matmul(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of matrices of one type [S, M, D] and [S, D, N], without a gradient.

    On a CPU, float32 goes to oneDNN. MKL, which `@` calls, leaves AVX-512 unused on processors of
    AMD, and takes twice the time there.
    """
    if left.device.type != "cpu":
        return left @ right
    linear = _onednn() if left.dtype == torch.float32 else None
    products = [
        a @ b if linear is None else linear(a, b.t(), None, "none", [], "")
        for a, b in zip(left, right, strict=True)
    ]
    return products[0][None] if len(products) == 1 else torch.stack(products)


@functools.cache
def _onednn() -> Callable[..., Tensor] | None:
    """PyTorch's oneDNN function for `left @ right.t()`; None where it is missing or wrong.

    `torch.compile` calls it; the public function copies the result.
    """
    left, right = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        linear: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
        agrees = torch.equal(linear(left, right, None, "none", [], ""), left @ right.t())
    except (AttributeError, RuntimeError):
        return None
    return linear if agrees else None


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to run without autocast, which would round its products."""

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
