"""The exact expectation of the contrastive loss over its draws of negatives.

The negative term of `cktf.functional.nce_loss` is an average over K draws from a known finite set,
so its expectation is `K · mean_{j in negatives of i} log(c / (P(i,j) + c + ε))`: no draws, no index
tensor, no gather or scatter, only dense products, and no sampling noise.

Cost: 4·B·N·D operations a side, as the sampled form's two products, and B·N softplus and sigmoid
in place of B·K. Memory: B·chunk, whatever N is, since the bank is read in chunks that stay in the
cache.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cktf import _check
from cktf.errors import ShapeError
from cktf.functional.nce import EPSILON

# Scores of a chunk, in numbers: 2 MB of float32.
_CHUNK = 1 << 19


class _NCEAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        bank: Tensor,
        index: Tensor,
        labels: Tensor | None,
        bank_labels: Tensor | None,
        temperature: float,
        log_normalizer: Tensor,
        negatives: int,
    ) -> Tensor:
        noise = negatives / len(bank)
        with torch.autocast(anchor.device.type, enabled=False):
            rows = anchor.to(bank.dtype)
            shift = log_normalizer + math.log(noise + EPSILON)
            positive = bank[index]
            own = (anchor.float() * positive.float()).sum(1) / temperature - shift
            total, count, gradient = _negatives(
                rows, bank, index, labels, bank_labels, temperature, shift
            )
            share = negatives / count
            loss = (F.softplus(-own) + share * total).mean()
            loss = loss - negatives * math.log(noise / (noise + EPSILON))
            if ctx.needs_input_grad[0]:
                pull = (own.sigmoid() - 1).unsqueeze(1) * positive.float()
                gradient = pull + share.unsqueeze(1) * gradient
                scale = 1 / (len(anchor) * temperature)
                ctx.save_for_backward((gradient * scale).to(anchor.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, *([None] * 7)


def _negatives(
    rows: Tensor,
    bank: Tensor,
    index: Tensor,
    labels: Tensor | None,
    bank_labels: Tensor | None,
    temperature: float,
    shift: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Over all negatives: sums of softplus [B], their number [B], and Σ sigmoid · row [B, D]."""
    total = torch.zeros(len(rows), device=rows.device)
    count = torch.zeros_like(total)
    gradient = torch.zeros(rows.shape, device=rows.device)
    chunk = max(1, _CHUNK // len(rows))
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk]
        logits = (rows @ part.t()).float().div_(temperature).sub_(shift)
        if labels is None or bank_labels is None:
            position = torch.arange(start, start + len(part), device=rows.device)
            excluded = position == index.unsqueeze(1)
        else:
            excluded = bank_labels[start : start + chunk] == labels.unsqueeze(1)
        logits.masked_fill_(excluded, -torch.inf)
        total += F.softplus(logits).sum(1)
        count += (~excluded).sum(1)
        gradient += (logits.sigmoid_().to(bank.dtype) @ part).float()
    return total, count, gradient


def nce_loss_all(
    anchor: Tensor,
    bank: Tensor,
    index: Tensor,
    *,
    temperature: float,
    normalizer: float | Tensor,
    negatives: int,
    labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
) -> Tensor:
    """What `nce_loss` gives on average over its draws, scaled to `negatives` of them.

    Args:
        anchor: [B, D], rows of unit length; the only argument with a gradient.
        bank: [N, D] float32 or bfloat16, rows of unit length.
        index: [B] int64, each anchor's own row of the bank: its positive.
        temperature: τ > 0.
        normalizer: Z > 0, a constant of the run.
        negatives: K, to how many draws the negative term is scaled.
        labels: [B] classes; with them negatives are the rows of other classes, without them all
            rows but the anchor's own.
        bank_labels: [N] classes of the rows; given with labels or not at all.

    Returns:
        Scalar float32, in nats, averaged over anchors.

    Raises:
        ShapeError: shapes that do not fit together, labels on one side only, or an anchor without
            any negative.
    """
    name = "The contrastive loss"
    _check.vectors(name, anchor, "anchor")
    _check.vectors(name, bank, "bank")
    _check.indices(name, index, len(anchor), len(bank))
    if anchor.shape[1] != bank.shape[1]:
        raise ShapeError(
            f"Anchor and bank need rows of one length: anchor {tuple(anchor.shape)}, bank "
            f"{tuple(bank.shape)}. Pass both through heads of the same embedding_dim."
        )
    if negatives < 1 or len(bank) < 2:
        raise ShapeError(
            f"Contrast needs at least one negative: K is {negatives}, and the bank has {len(bank)} "
            "rows."
        )
    _check_labels(labels, bank_labels, len(anchor), len(bank))
    constant = torch.as_tensor(normalizer, dtype=torch.float32, device=anchor.device).detach()
    loss: Tensor = _NCEAll.apply(
        anchor, bank.detach(), index, labels, bank_labels, temperature, constant.log(), negatives
    )
    return loss


def _check_labels(labels: Tensor | None, bank_labels: Tensor | None, batch: int, size: int) -> None:
    if labels is None and bank_labels is None:
        return
    if labels is None or bank_labels is None:
        raise ShapeError("labels and bank_labels are given together, or neither.")
    if labels.shape != (batch,) or bank_labels.shape != (size,):
        raise ShapeError(
            f"labels are [{batch}] and bank_labels [{size}]; given {tuple(labels.shape)} and "
            f"{tuple(bank_labels.shape)}."
        )
    if labels.device.type == "cpu" and bool((bank_labels == bank_labels[:1]).all()):
        raise ShapeError("All rows of the bank have one class, so no anchor has a negative.")
