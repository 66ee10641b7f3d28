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
from cktf.functional.contrast import Candidates, dense_contrast, sampled_contrast
from cktf.functional.critics import NCECritic


def build_nce_critic(
    normalizer: float | Tensor, negatives: int, size: int, device: torch.device
) -> NCECritic:
    """The critic of `nce_loss` for a normalizer Z, K negatives and N rows to draw them from.

    Z is checked where that costs no synchronization, on the CPU.
    """
    on_cpu = not isinstance(normalizer, Tensor) or normalizer.device.type == "cpu"
    if on_cpu and not bool(normalizer > 0):
        raise MethodError(
            f"The normalizer Z is above 0, given {float(normalizer)}. Take N times the mean of "
            "exp(anchor · row / τ) over some rows."
        )
    constant = torch.as_tensor(normalizer, dtype=torch.float32, device=device).detach()
    return NCECritic(constant.log(), negatives, size)


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
    _check_temperature(temperature)
    check_sampled_inputs(anchor, bank, contrast_index)
    critic = build_nce_critic(normalizer, contrast_index.shape[1] - 1, len(bank), anchor.device)
    positive, negative_index = bank[contrast_index[:, 0]], contrast_index[:, 1:]
    return sampled_contrast(anchor, positive, bank, negative_index, temperature, critic)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise MethodError(
            f"The temperature τ is above 0, given {temperature}. The paper has 0.1 and 0.07."
        )


def check_sampled_inputs(anchor: Tensor, bank: Tensor, contrast_index: Tensor) -> None:
    """Raise ShapeError unless anchors, bank and chosen rows fit together."""
    _check.same_embedding_dim(anchor, bank)
    _check.contrast_index(contrast_index, len(anchor), len(bank))


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
    _check_temperature(temperature)
    candidates = check_all_inputs(anchor, bank, index, negatives, labels, bank_labels)
    critic = build_nce_critic(normalizer, negatives, len(bank), anchor.device)
    return dense_contrast(anchor, bank[index], bank, candidates, temperature, critic)


def check_all_inputs(
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
    _check_labels(labels, bank_labels, len(anchor), len(bank))
    if labels is None or bank_labels is None:
        return Candidates(index, torch.arange(len(bank), device=index.device), negatives)
    return Candidates(labels, bank_labels, negatives)


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
