"""Modes under which two devices compute the same: draws, signs of vectors, float64, no TF32."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cktf.functional import kdsvd
from cktf.functional.singular_vectors import right_vectors

_NEW = frozenset({torch.randint, torch.rand, torch.randn, torch.randperm})
_IN_PLACE = frozenset({Tensor.random_, Tensor.uniform_, Tensor.normal_})


class CPUDraws(TorchFunctionMode):
    """Draw every random number on the CPU, by its generator, and copy it to the device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function; on the CPU where it draws."""
        keywords = dict(kwargs or {})
        if func in _NEW:
            device = keywords.pop("device", None)
            return func(*args, **keywords, device="cpu").to(device or "cpu")
        if func in _IN_PLACE and args[0].device.type != "cpu":
            drawn = func(torch.empty_like(args[0], device="cpu"), *args[1:], **keywords)
            return args[0].copy_(drawn)
        return func(*args, **keywords)


class Float64(TorchFunctionMode):
    """Compute a function in float64 that otherwise converts its arguments to float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function; with float64 where it asks for float32."""
        if func is Tensor.float:
            # A copy, as from another type: the caller may overwrite it.
            return args[0].to(torch.float64, copy=True)
        keywords = {k: _double(v) for k, v in (kwargs or {}).items()}
        return func(*map(_double, args), **keywords)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def float64() -> Iterator[None]:
    """Compute in float64 inside the block, new tensors included."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Multiply float32 in float32 inside the block."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def equal_signs() -> Iterator[None]:
    """Give KDSVD singular vectors whose sums are positive; LAPACK chooses signs by chance."""

    def signed(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, vectors = right_vectors(rows, count)
        return values, vectors * torch.where(vectors.sum(1, keepdim=True) < 0, -1, 1)

    with patch.object(kdsvd, "right_vectors", signed):
        yield
