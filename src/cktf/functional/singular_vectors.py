"""Leading singular values and right vectors of many small matrices, with a bounded gradient.

On a CPU, LAPACK decomposes them. A GPU would do so one matrix at a time, and wait for each batch to
say whether it converged. There the leading vectors come one after the other from powers of the Gram
matrix, and the gradient from linear equations: products and factorizations of the whole batch that
nothing waits for. Both give the same vectors but for their signs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Relative gap of eigenvalues below which the gradient of their vectors is bounded.
_GAP = 1e-4
# Squarings between two divisions by the trace: float64 holds the 32nd power of any eigenvalue that
# leads. Three rounds are the power 2^15, of which a relative gap of 0.001 leaves a factor of 1e-14.
_SQUARINGS, _ROUNDS = 5, 3
_TINY = 1e-300


def right_vectors(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading singular values [B, k] and right vectors [B, L, k] of [B, M, L], largest first.

    Args:
        rows: float32 or float64; the gradient of the vectors reaches it, and none of the values.
        count: k, no more than M and L.
    """
    method = _Decomposed if rows.device.type == "cpu" else _Powers
    values, vectors = method.apply(rows, count)
    return values, vectors


class _Decomposed(torch.autograd.Function):
    """By a complete decomposition."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        # Of tall matrices LAPACK decomposes R of a QR decomposition too, and then forms the left
        # vectors, which nobody reads.
        tall = rows.shape[1] > 2 * rows.shape[2]
        core = torch.linalg.qr(rows, mode="r")[1] if tall else rows
        values, vectors = torch.linalg.svd(core, full_matrices=False)[1:]
        ctx.save_for_backward(rows, values.square(), vectors.mT)
        leading = values[:, :count].clone()
        ctx.mark_non_differentiable(leading)
        return leading, vectors.mT[..., :count].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None]:
        rows, values, vectors = ctx.saved_tensors
        count = grad.shape[-1]
        leading = values[:, None, :count]
        bound = _GAP * values[:, :1, None].clamp_min(1e-12)
        coefficients = vectors.mT @ grad
        # Perturbation theory of rowsᵀ·rows; the rest of the space belongs to the value 0.
        within = vectors @ (coefficients * _inverse(leading - values.unsqueeze(2), bound))
        outside = (grad - vectors @ coefficients) * _inverse(leading, bound)
        product = (within + outside) @ vectors[..., :count].mT
        return rows @ (product + product.mT), None


def _inverse(gap: Tensor, bound: Tensor) -> Tensor:
    """1/gap, but no more than about 1/bound."""
    return gap / (gap.square() + bound.square())


class _Powers(torch.autograd.Function):
    """By powers of the smaller Gram matrix, in float64, in which forming it loses nothing."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        wide = rows.shape[1] < rows.shape[2]
        # [B, s, l] with s <= l, of length one, so that the eigenvalues of the Gram matrix sum to 1.
        side = (rows if wide else rows.mT).double()
        scale = side.square().sum((1, 2), keepdim=True).clamp_min(_TINY).sqrt()
        side = side / scale
        gram = side @ side.mT
        values, vectors = _leading_eigenvectors(gram, count)
        right = _unit(side.mT @ vectors) if wide else vectors
        ctx.save_for_backward(rows, scale, values, right)
        singular_values = (values.clamp_min(0).sqrt() * scale).squeeze(1).to(rows.dtype)
        ctx.mark_non_differentiable(singular_values)
        return singular_values, right.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None]:
        rows, scale, values, right = ctx.saved_tensors
        matrices, gradient = rows.double() / scale, grad.double()
        bound = _GAP * values[..., :1].clamp_min(1e-12)
        parts = [
            _resolve(matrices, values[..., k : k + 1], bound, gradient[..., k : k + 1])
            for k in range(gradient.shape[-1])
        ]
        product = torch.cat(parts, -1) @ right.mT
        return (matrices @ (product + product.mT) / scale).to(rows.dtype), None


def _leading_eigenvectors(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues [B, 1, k] and vectors [B, s, k] of positive matrices [B, s, s], largest first."""
    rest, values, vectors = gram, list[Tensor](), list[Tensor]()
    for _ in range(count):
        power = rest
        for _ in range(_ROUNDS):
            trace = power.diagonal(dim1=1, dim2=2).sum(1).abs().clamp_min(_TINY)
            power = power / trace.view(-1, 1, 1)
            for _ in range(_SQUARINGS):
                power = power @ power
        # The remainder is the vector times its own entries: the column of the largest is read.
        column = power.diagonal(dim1=1, dim2=2).argmax(1).view(-1, 1, 1)
        vector = _unit(power.gather(2, column.expand(-1, power.shape[1], 1)))
        # Where nothing but rounding is left, it may point along an earlier one.
        for earlier in vectors:
            vector = vector - earlier * (earlier.mT @ vector)
        vector = _unit(vector)
        vectors.append(vector)
        values.append(vector.mT @ gram @ vector)
        rest = rest - values[-1] * (vector @ vector.mT)
    return torch.cat(values, 2), torch.cat(vectors, 2)


def _unit(columns: Tensor) -> Tensor:
    """Columns [B, s, k] divided by their lengths; zeros stay zeros."""
    return columns / columns.square().sum(1, keepdim=True).clamp_min(_TINY).sqrt()


def _resolve(matrices: Tensor, value: Tensor, bound: Tensor, vector: Tensor) -> Tensor:
    """`A·(A² + b²)⁻¹·x` [B, L, 1] for `A = λ − RᵀR`: over eigenvectors, `_inverse` of the gaps.

    Where R has fewer rows than columns, the equations are those of the smaller `A' = λ − RRᵀ`, and
    the product is `(λ·x + Rᵀ·(λ·A' − b²)·(A'² + b²)⁻¹·R·x) / (λ² + b²)`.

    Args:
        matrices: R, [B, M, L].
        value: λ, [B, 1, 1], an eigenvalue of RᵀR.
        bound: b, [B, 1, 1].
        vector: x, [B, L, 1].
    """
    wide = matrices.shape[1] < matrices.shape[2]
    side = matrices if wide else matrices.mT
    identity = torch.eye(side.shape[1], dtype=side.dtype, device=side.device)
    gap = value * identity - side @ side.mT
    # Unchecked: a check would wait for the device.
    factor = torch.linalg.cholesky_ex(gap @ gap + bound.square() * identity)[0]

    def solve(right_hand_side: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor, right_hand_side, upper=False)
        solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
        return solution

    if not wide:
        return gap @ solve(vector)
    inner = (value * gap - bound.square() * identity) @ solve(side @ vector)
    return (value * vector + side.mT @ inner) / (value.square() + bound.square())
