"""InfoNCE: the positive told from the negatives by a softmax.

Source: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding",
2018, arXiv 1807.03748, equation 4. For anchor i with logits `x = anchor_i · key / τ`,

    ℓ = −(1/B) Σ_i log( exp x₊ / (exp x₊ + Σ_k exp x_k) ),  and  I >= log(K + 1) − ℓ.

It needs no normalizer, hence none that was fixed on the first batch of a run.
"""

import math

from torch import Tensor

from cktf import _check
from cktf.errors import MethodError
from cktf.functional.contrast import contrast_loss
from cktf.functional.critics import MIN_TEMPERATURE, InfoNCECritic
from cktf.functional.nce import build_candidates


def uninformed_infonce(negatives: int) -> float:
    """`infonce_loss` of an anchor that cannot tell its positive from K negatives: log(1 + K)."""
    return math.log(1 + negatives)


def infonce_loss(
    anchor: Tensor, bank: Tensor, contrast_index: Tensor, *, temperature: float
) -> Tensor:
    """The softmax loss of one side, with K negatives drawn for each anchor.

    Args and errors as for `nce_loss`, without a normalizer; temperature: τ of 0.02 or more, since
    the sums are of exponentials in float32.

    Returns:
        Scalar float32, in nats, averaged over anchors: log(K + 1) where nothing is told apart.
    """
    _check.same_embedding_dim(anchor, bank)
    _check.contrast_index(contrast_index, len(anchor), len(bank))
    _check_temperature(temperature)
    positive, negative_index = bank[contrast_index[:, 0]], contrast_index[:, 1:]
    return contrast_loss(anchor, positive, bank, negative_index, temperature, InfoNCECritic())


def infonce_loss_all(
    anchor: Tensor,
    bank: Tensor,
    index: Tensor,
    *,
    temperature: float,
    negatives: int,
    labels: Tensor | None = None,
    bank_labels: Tensor | None = None,
) -> Tensor:
    """The softmax loss with the sum over K draws replaced by its expectation over all negatives.

    That is where `infonce_loss` goes for large K, and by Jensen's inequality never below its mean.

    Args and errors as for `nce_loss_all` and `infonce_loss`, without a normalizer.
    """
    candidates = build_candidates(anchor, bank, index, negatives, labels, bank_labels)
    _check_temperature(temperature)
    return contrast_loss(anchor, bank[index], bank, candidates, temperature, InfoNCECritic())


def _check_temperature(temperature: float) -> None:
    if not MIN_TEMPERATURE <= temperature < math.inf:
        raise MethodError(
            f"InfoNCE takes a temperature of {MIN_TEMPERATURE} or more, given {temperature}: "
            "exponentials of 1/τ would exceed float32."
        )
