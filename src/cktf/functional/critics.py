"""How scores become a loss: the two critics of contrastive learning.

Both bound the mutual information of two representations from below and read the same logits
`x = anchor · key / τ`: one of the positive, x₊, and those of the negatives. A critic turns a block
of negatives' logits into a sum and, in place, into their weights in the gradient; and at the end
the sum into each anchor's loss. So the same kernels serve both, in blocks of any size.

- `NCECritic` (CRD and CKTF, after Gutmann and Hyvärinen 2010): each score is told from noise by a
  logistic regression with a fixed normalizer Z; `I >= log K + E[log D+]`.
- `InfoNCECritic` (van den Oord et al. 2018, arXiv 1807.03748): the positive is told from K
  negatives by a softmax, `−log(exp x₊ / (exp x₊ + Σ exp x_k))`; `I >= log(K + 1) − loss`. It needs
  no constant.

With rows of unit length, |x| is at most 1/τ, so that for τ of 0.02 or more no exponential leaves
float32.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7
# At a lower temperature exp(1/τ), times the number of rows, exceeds float32.
MIN_TEMPERATURE = 0.02
_LOG2E = math.log2(math.e)
# Float32 holds a product of this many terms of at most 2.
_TERMS_PER_LOGARITHM = 64


class Critic(Protocol):
    """Blocks of negatives' logits in, losses and gradient weights out.

    Attributes:
        shift: [S] or scalar; the sums are of `softplus(x − shift)`, with weights
            `sigmoid(x − shift)`. None where they are of `exp(x)`, which are the weights too.
    """

    @property
    def shift(self) -> Tensor | None:
        """The constant of a logistic critic."""

    def of_sides(self, sides: slice) -> "Critic":
        """The critic of some of the sides."""

    def block(self, logits: Tensor) -> Tensor:
        """[S, B, n] logits of negatives -> [S, B] sums; the logits become weights, in place.

        A logit of minus infinity is no negative: it adds nothing and gets weight 0.
        """

    def finish(
        self, positive: Tensor, total: Tensor, share: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, and the weights of the positives and of all blocks in the gradient.

        Args:
            positive: [S, B] logits of the positives.
            total: [S, B] sums over all blocks.
            share: weight of each negative, [B] or one for all.

        Returns:
            [S, B] losses in nats, `pull` and `push`: the derivative by the anchor times τ is
            `pull · positive + push · Σ weight · key`.
        """


def _softplus_sums(x: Tensor) -> Tensor:
    """`Σ log(1 + exp x)` along the rows of [..., n].

    One logarithm is taken for `_TERMS_PER_LOGARITHM` entries, since a logarithm of 1 + e costs as
    much as twenty exponentials. With e = exp(−|x|), at most 1, pairs are joined by
    (1 + a)(1 + b) − 1 = a + b + ab, a sum of positive terms without loss.
    """
    if x.device.type != "cpu":
        return F.softplus(x).sum(-1)
    # On a CPU a power of two takes a quarter of the time of an exponential.
    terms = x.abs().mul_(-_LOG2E).exp2_()
    for _ in range(int(math.log2(_TERMS_PER_LOGARITHM))):
        half = terms.shape[-1] // 2
        low, high, odd = torch.split(terms, [half, half, terms.shape[-1] - 2 * half], dim=-1)
        joined = torch.addcmul(low, low, high).add_(high)
        terms = joined if not odd.shape[-1] else torch.cat([joined, odd], dim=-1)
    return terms.log1p_().sum(-1) + x.clamp_min(0).sum(-1)


@dataclass(frozen=True)
class NCECritic:
    """Noise-contrastive estimation as in `cktf.functional.nce_loss`.

    Attributes:
        log_normalizer: [S] or scalar, log Z.
        negatives: K.
        size: N, of which the negatives are drawn: the noise of each is c = K/N.
    """

    log_normalizer: Tensor
    negatives: int
    size: int

    @property
    def _noise(self) -> float:
        return self.negatives / self.size

    def of_sides(self, sides: slice) -> "NCECritic":
        """With the normalizers of the sides."""
        log_normalizer = self.log_normalizer
        return replace(self, log_normalizer=log_normalizer[sides]) if log_normalizer.dim() else self

    def block(self, logits: Tensor) -> Tensor:
        """Sums of `softplus(x)`, weights `sigmoid(x)`, with x = log P − log(c + ε)."""
        logits -= self.shift.view(-1, 1, 1)
        total = _softplus_sums(logits)
        logits.sigmoid_()
        return total

    def finish(
        self, positive: Tensor, total: Tensor, share: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`softplus(−x₊) + share · total`, and the constant that the definition adds."""
        positive = positive - self.shift.view(-1, 1)
        constant = self.negatives * math.log(self._noise / (self._noise + EPSILON))
        loss = F.softplus(-positive) + share * total - constant
        return loss, positive.sigmoid() - 1, torch.ones_like(positive) * share

    @property
    def shift(self) -> Tensor:
        """`log Z + log(c + ε)`."""
        return self.log_normalizer + math.log(self._noise + EPSILON)


class InfoNCECritic:
    """The softmax over the positive and the negatives."""

    shift = None

    def of_sides(self, sides: slice) -> "InfoNCECritic":
        """The same for all sides."""
        return self

    def block(self, logits: Tensor) -> Tensor:
        """Sums of exponentials, which are the weights too."""
        return logits.mul_(_LOG2E).exp2_().sum(-1)

    def finish(
        self, positive: Tensor, total: Tensor, share: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`log(1 + share · total / exp(x₊))`."""
        negatives_sum = share * total
        margin = positive - negatives_sum.log()
        return F.softplus(-margin), margin.sigmoid() - 1, share / (positive.exp() + negatives_sum)


@dataclass(frozen=True)
class NormalizerEstimate:
    """The mean of exp(x) over the positive and K negatives, from which Z is set; no critic.

    Attributes:
        negatives: K.
    """

    negatives: int
    shift: ClassVar[None] = None

    def of_sides(self, sides: slice) -> "NormalizerEstimate":
        """The same for all sides."""
        return self

    def block(self, logits: Tensor) -> Tensor:
        """Sums of exponentials."""
        return logits.exp_().sum(-1)

    def finish(
        self, positive: Tensor, total: Tensor, share: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`(exp(x₊) + share · total) / (1 + K)`."""
        mean = (positive.exp() + share * total) / (1 + self.negatives)
        # An anchor without negatives has no sum over them.
        mean = torch.where(torch.as_tensor(share, device=positive.device) > 0, mean, positive.exp())
        return mean, mean, mean
