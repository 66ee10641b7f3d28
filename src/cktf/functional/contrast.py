"""The contrastive kernels: loss and gradient formed together, no bank row copied.

For each anchor, scores with its positive and with many negatives become a loss through a critic
(`cktf.functional.critics`). The loss is a scalar, so its gradient by the anchor, [B, D], is formed
in the forward pass, and is all that is kept for backward. Keys are constants: rows of a memory.
Everything is computed in float32, whatever autocast says; only the two products are in the type of
the keys, and in float32 too where the hardware does not multiply bfloat16.

- Sampled: K negatives for each anchor. One product `anchor @ keysᵀ` gives every score,
  the chosen ones are gathered; the gradient is the transpose, one scatter and one product. Time
  4·B·N·D operations and a few passes over B·K numbers; memory B·N and a few times B·K.
- Dense: every key is a negative of every anchor, but for those of a mask. No gather, no
  scatter. Time 4·B·M·D operations for M keys; memory `BLOCK` numbers: keys are read in blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktf.functional.critics import Critic
from cktf.functional.precision import fast_matmul, has_fast_bfloat16

# Scores of one block: 4 MB of float32.
BLOCK = 1 << 20


class Candidates:
    """Which keys are negatives of which anchors: those with another id.

    Args:
        anchor_ids: [B] int64, the anchors' classes, or their positions in the training set.
        key_ids: [M] int64, the same for the keys; -1 for a key that is everyone's negative.
        negatives: K, the number of draws to which the negatives of each anchor are scaled.

    Attributes:
        negatives: K.
        share: [B] weight of each negative: K over their number; 0 for an anchor without any.
    """

    def __init__(self, anchor_ids: Tensor, key_ids: Tensor, negatives: int) -> None:
        self.negatives = negatives
        self._anchors, self._keys = anchor_ids.unsqueeze(1), key_ids
        # Every anchor side reads this mask; it is stored if it is no larger than a few blocks.
        small = len(anchor_ids) * len(key_ids) <= 4 * BLOCK
        self._mask = self._build_mask(slice(None)) if small else None
        same = torch.zeros(len(anchor_ids), dtype=torch.int64, device=anchor_ids.device)
        for block in blocks(len(key_ids), len(anchor_ids)):
            same += (key_ids[block] == self._anchors).sum(1)
        count = len(key_ids) - same
        self.share = torch.where(count > 0, negatives / count.clamp_min(1), 0.0)

    def mask(self, block: slice) -> Tensor:
        """[B, n] float32: 0 where a key of the block is a negative, else minus infinity."""
        return self._build_mask(block) if self._mask is None else self._mask[:, block]

    def _build_mask(self, block: slice) -> Tensor:
        same = self._keys[block] == self._anchors
        mask = torch.zeros(same.shape, device=same.device)
        return mask.masked_fill_(same, -torch.inf)


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        positive: Tensor,
        keys: Tensor,
        negatives: Tensor | Candidates,
        temperature: float,
        critic: Critic,
    ) -> Tensor:
        has_gradient = ctx.needs_input_grad[0]
        with torch.autocast(anchor.device.type, enabled=False):
            rows, positive = anchor.float() / temperature, positive.float()
            share: Tensor | float = 1.0
            if isinstance(negatives, Candidates):
                share = negatives.share
                total, weighted_keys = _sum_dense(rows, keys, negatives, critic, has_gradient)
            else:
                total, weighted_keys = _sum_sampled(rows, keys, negatives, critic, has_gradient)
            loss, pull, push = critic.finish((rows * positive).sum(1), total, share)
            if has_gradient:
                gradient = pull.unsqueeze(1) * positive + push.unsqueeze(1) * weighted_keys
                ctx.save_for_backward((gradient / (len(anchor) * temperature)).to(anchor.dtype))
        return loss.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, *([None] * 5)


def _sum_sampled(
    rows: Tensor, keys: Tensor, negative_index: Tensor, critic: Critic, has_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The critic's sums [B] over the negatives, and the sums [B, D] of their weighted keys."""
    scores = _all_scores(rows, keys)
    weights = scores.gather(1, negative_index).float()
    total, weighted_keys = critic.block(weights), torch.zeros_like(rows)
    if has_gradient:
        # The scores are read; the weights reuse their memory, which is mapped already.
        _scatter_add(scores, negative_index, weights)
        whole = _product_dtype(keys) == keys.dtype
        for block, key_block in [(slice(None), keys)] if whole else _blocks(keys, len(rows)):
            weighted_keys += fast_matmul(scores[:, block], key_block)
    return total, weighted_keys


def _sum_dense(
    rows: Tensor, keys: Tensor, candidates: Candidates, critic: Critic, has_gradient: bool
) -> tuple[Tensor, Tensor]:
    """As `_sum_sampled`, over all keys but the masked."""
    total, weighted_keys = torch.zeros(len(rows), device=rows.device), torch.zeros_like(rows)
    for block, key_block in _blocks(keys, len(rows)):
        weights = fast_matmul(rows.to(key_block.dtype), key_block.t()).float()
        weights += candidates.mask(block)
        total += critic.block(weights)
        if has_gradient:
            weighted_keys += fast_matmul(weights.to(key_block.dtype), key_block)
    return total, weighted_keys


def _all_scores(rows: Tensor, keys: Tensor) -> Tensor:
    """[B, N] products of rows [B, D] with keys [N, D], in the type that these are multiplied in."""
    if _product_dtype(keys) == keys.dtype:
        return fast_matmul(rows.to(keys.dtype), keys.t())
    scores = torch.empty(len(rows), len(keys), device=rows.device, dtype=_product_dtype(keys))
    for block, key_block in _blocks(keys, len(rows)):
        scores[:, block] = fast_matmul(rows, key_block.t())
    return scores


def _scatter_add(dense: Tensor, negative_index: Tensor, weights: Tensor) -> None:
    """Add weights [B, K] into their columns of [B, N], in place; the old values are discarded.

    Sums are formed in float32; in another type a few anchors at a time, to save memory.
    """
    if dense.dtype == weights.dtype:
        dense.zero_().scatter_add_(1, negative_index, weights)
        return
    batch, size = dense.shape
    step = max(1, (BLOCK if dense.device.type == "cpu" else 16 * BLOCK) // size)
    for start in range(0, batch, step):
        rows = slice(start, start + step)
        sums = torch.zeros_like(dense[rows], dtype=weights.dtype)
        dense[rows] = sums.scatter_add_(1, negative_index[rows], weights[rows])


def _product_dtype(keys: Tensor) -> torch.dtype:
    """The type that products with the keys are computed in."""
    slow = keys.dtype == torch.bfloat16 and not has_fast_bfloat16(keys.device)
    return torch.float32 if slow else keys.dtype


def _blocks(keys: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """The keys in blocks, in the type of the products."""
    for block in blocks(len(keys), batch):
        yield block, keys[block].to(_product_dtype(keys))


def blocks(keys: int, batch: int) -> Iterator[slice]:
    """Slices of the keys, each with `BLOCK` scores for a batch."""
    size = max(1, BLOCK // batch)
    return (slice(start, start + size) for start in range(0, keys, size))


def contrast_loss(
    anchor: Tensor,
    positive: Tensor,
    keys: Tensor,
    negatives: Tensor | Candidates,
    temperature: float,
    critic: Critic,
) -> Tensor:
    """Mean loss of anchors [B, D] with positives [B, D] against keys [N, D].

    The negatives are rows [B, K] of the keys, or all keys but the masked. An anchor without any
    negative counts its positive alone.
    """
    loss: Tensor = _Contrast.apply(
        anchor, positive.detach(), keys.detach(), negatives, temperature, critic
    )
    return loss
