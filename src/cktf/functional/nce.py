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

`nce_loss_all` is the exact expectation over the draws. The negative term is an average over K draws
from a known finite set, so that is `K · mean_{j in negatives of i} log(c / (P(i,j) + c + ε))`: no
draws, no index tensor, no gather or scatter, only dense products, and no sampling noise.

How both are computed, and at what cost, is in `cktf.functional.contrast`. The published code copies
K + 1 bank rows for every anchor instead, B·K·D numbers.
"""

import math

import torch
from torch import Tensor

from cktf import _check
from cktf.errors import MethodError, ShapeError
from cktf.functional.contrast import Candidates, contrast_loss
from cktf.functional.critics import NCECritic


def _build_critic(
    temperature: float, normalizer: float | Tensor, negatives: int, bank: Tensor
) -> NCECritic:
    if not 0 < temperature < math.inf:
        raise MethodError(
            f"The temperature τ is above 0, given {temperature}. The paper has 0.1 and 0.07."
        )
    # Z is checked where that costs no synchronization, on the CPU.
    on_cpu = not isinstance(normalizer, Tensor) or normalizer.device.type == "cpu"
    if on_cpu and not bool(normalizer > 0):
        raise MethodError(
            f"The normalizer Z is above 0, given {float(normalizer)}. Take N times the mean of "
            "exp(anchor · row / τ) over some rows."
        )
    constant = torch.as_tensor(normalizer, dtype=torch.float32, device=bank.device).detach()
    return NCECritic(constant.log(), negatives, len(bank))


def uninformed_nce(negatives: int) -> float:
    """`nce_loss` where every score P is 1/N: log(1 + K) + K·log(1 + 1/K), in nats.

    It is the lowest for an anchor that cannot tell its positive from K negatives.
    """
    return math.log(1 + negatives) + negatives * math.log1p(1 / negatives)


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
        MethodError: a temperature or normalizer that is not above 0.
        ShapeError: shapes that do not fit together, or no negative.
    """
    _check.same_embedding_dim(anchor, bank)
    _check.contrast_index(contrast_index, len(anchor), len(bank))
    critic = _build_critic(temperature, normalizer, contrast_index.shape[1] - 1, bank)
    positive, negative_index = bank[contrast_index[:, 0]], contrast_index[:, 1:]
    return contrast_loss(anchor, positive, bank, negative_index, temperature, critic)


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
    """The expectation of `nce_loss` over its draws, scaled to `negatives` of them.

    Args:
        anchor: [B, D], rows of unit length; the only argument with a gradient.
        bank: [N, D] float32 or bfloat16, rows of unit length.
        index: [B] int64, each anchor's own row of the bank: its positive.
        temperature: τ > 0.
        normalizer: Z > 0, a constant of the run.
        negatives: K, the number of draws to which the negative term is scaled.
        labels: [B] classes; with them negatives are the rows of other classes, without them all
            rows but the anchor's own.
        bank_labels: [N] classes of the rows; given with labels or not at all.

    Returns:
        Scalar float32, in nats, averaged over anchors.

    Raises:
        MethodError: a temperature or normalizer that is not above 0.
        ShapeError: shapes that do not fit together, labels on one side only, or an anchor without
            any negative.
    """
    candidates = build_candidates(anchor, bank, index, negatives, labels, bank_labels)
    critic = _build_critic(temperature, normalizer, negatives, bank)
    return contrast_loss(anchor, bank[index], bank, candidates, temperature, critic)


def build_candidates(
    anchor: Tensor,
    bank: Tensor,
    index: Tensor,
    negatives: int,
    labels: Tensor | None,
    bank_labels: Tensor | None,
) -> Candidates:
    """Build the candidates; ShapeError where the arguments do not fit together."""
    _check.same_embedding_dim(anchor, bank)
    _check.indices("The contrastive loss", index, len(anchor), len(bank))
    if negatives < 1 or len(bank) < 2:
        raise ShapeError(
            f"Contrast needs at least one negative: K is {negatives}, and the bank has {len(bank)} "
            "rows."
        )
    if labels is None and bank_labels is None:
        return Candidates(index, torch.arange(len(bank), device=index.device), negatives)
    if labels is None or bank_labels is None:
        raise ShapeError("labels and bank_labels are given together, or neither.")
    if labels.shape != anchor.shape[:1] or bank_labels.shape != bank.shape[:1]:
        raise ShapeError(
            f"labels are [{len(anchor)}] and bank_labels [{len(bank)}]; given "
            f"{tuple(labels.shape)} and {tuple(bank_labels.shape)}."
        )
    if labels.device.type == "cpu" and bool((bank_labels == bank_labels[:1]).all()):
        raise ShapeError("All rows of the bank have one class, so no anchor has a negative.")
    return Candidates(labels, bank_labels, negatives)
