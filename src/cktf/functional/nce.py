"""The contrastive loss of CRD and CKTF, loss and gradient formed together.

Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020,
arXiv 1910.10699, equations 17 to 19, in the form of the published implementation; it follows
Gutmann and Hyvärinen's noise-contrastive estimation. For anchor i with positive and K negatives
among N bank rows, scores `P(i,j) = exp(anchor_i · bank_j / τ) / Z` and `c = K/N`,

    ℓ = −(1/B) Σ_i [ log(P(i,+) / (P(i,+) + c + ε)) + Σ_k log(c / (P(i,j_k) + c + ε)) ].

With the logit `x = log P − log(c + ε)` the terms are `logsigmoid(x)` for the positive and
`log(c / (c + ε)) − softplus(x)` for a negative: a logistic loss, whose derivative by x is
`sigmoid(x) − [positive]`. Everything is formed in log space and float32, so that neither
`exp(1/τ)` nor mixed precision can overflow. Only the two products are in the type of the bank:
float32, or bfloat16 for a bank that is kept in it at half the memory.

Cost: the published code copies K + 1 bank rows for every anchor, B·K·D numbers. Here one product
`anchor @ bankᵀ` (2·B·N·D operations) gives every score, and the chosen ones are gathered; the
gradient is the transpose, one scatter and one product. Memory: a few arrays of B·K and one of B·N.
Because the loss is a scalar, its gradient by the anchor, [B, D], is all that is kept for backward.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cktf import _check
from cktf.errors import ShapeError

EPSILON = 1e-7


def normalizer(anchor: Tensor, bank: Tensor, contrast_index: Tensor, temperature: float) -> Tensor:
    """Z: N times the mean un-normalised score of a batch; scalar float32, without gradient."""
    with torch.no_grad(), torch.autocast(anchor.device.type, enabled=False):
        every = anchor.to(bank.dtype) @ bank.t()
        chosen = every.gather(1, contrast_index).float().div_(temperature)
        return chosen.exp_().mean() * len(bank)


class _NCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        bank: Tensor,
        contrast_index: Tensor,
        temperature: float,
        log_normalizer: Tensor,
    ) -> Tensor:
        batch, columns = contrast_index.shape
        noise = (columns - 1) / len(bank)
        with torch.autocast(anchor.device.type, enabled=False):
            every = anchor.to(bank.dtype) @ bank.t()
            logits = every.gather(1, contrast_index).float().div_(temperature)
            logits -= log_normalizer + math.log(noise + EPSILON)
            # One softplus over all columns: logsigmoid(x) = x − softplus(x).
            loss = F.softplus(logits).sum() - logits[:, 0].sum()
            loss = loss / batch - (columns - 1) * math.log(noise / (noise + EPSILON))
            if ctx.needs_input_grad[0]:
                weights = logits.sigmoid_()
                weights[:, 0] -= 1
                # The scores are done with: their memory, already mapped, takes the weights. Weights
                # of a row that comes twice are added in float32.
                dense = (
                    every.zero_()
                    if every.dtype == weights.dtype
                    else torch.zeros_like(every, dtype=weights.dtype)
                )
                dense.scatter_add_(1, contrast_index, weights)
                gradient = (dense.to(bank.dtype) @ bank).float() / (batch * temperature)
                ctx.save_for_backward(gradient.to(anchor.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None, None, None


def nce_loss(
    anchor: Tensor,
    bank: Tensor,
    contrast_index: Tensor,
    *,
    temperature: float,
    normalizer: float | Tensor,
) -> Tensor:
    """The contrastive loss of one side: each anchor must pick its positive out of K negatives.

    Args:
        anchor: [B, D], rows of unit length; the only argument with a gradient.
        bank: [N, D] float32 or bfloat16, rows of unit length: the other network's representations.
        contrast_index: [B, 1+K] int64, rows of the bank: column 0 the positive, then K >= 1
            negatives, with repetition as noise-contrastive estimation assumes.
        temperature: τ > 0.
        normalizer: Z > 0, a constant of the run.

    Returns:
        Scalar float32, in nats, summed over columns and averaged over anchors.

    Raises:
        ShapeError: shapes that do not fit together, or no negative.
    """
    _check_contrast(anchor, bank, contrast_index)
    constant = torch.as_tensor(normalizer, dtype=torch.float32, device=anchor.device).detach()
    loss: Tensor = _NCE.apply(anchor, bank.detach(), contrast_index, temperature, constant.log())
    return loss


def _check_contrast(anchor: Tensor, bank: Tensor, contrast_index: Tensor) -> None:
    _check.vectors("The contrastive loss", anchor, "anchor")
    _check.vectors("The contrastive loss", bank, "bank")
    if anchor.shape[1] != bank.shape[1]:
        raise ShapeError(
            f"Anchor and bank need rows of one length: anchor {tuple(anchor.shape)}, bank "
            f"{tuple(bank.shape)}. Pass both through heads of the same embedding_dim."
        )
    if contrast_index.dim() != 2 or len(contrast_index) != len(anchor):
        raise ShapeError(
            f"contrast_index is [batch, 1+K] for a batch of {len(anchor)}, given "
            f"{tuple(contrast_index.shape)}."
        )
    if contrast_index.shape[1] < 2:
        raise ShapeError("Contrast needs a positive and at least one negative: K >= 1, given 0.")
