"""The contrastive kernels: loss and gradient formed together, no bank row copied.

For each anchor, scores with its positive and with many negatives become a loss through a critic
(`cktf.functional.critics`). The loss is a scalar, so its gradient by the anchor, [B, D], is formed
in the forward pass, and is all that is kept for backward. Keys are constants: rows of a memory.
Everything is computed in float32, whatever autocast says; only the two products are in the type of
the keys, and in float32 too where the hardware does not multiply bfloat16.

- `sampled_contrast`: K negatives for each anchor. One product `anchor @ keysᵀ` gives every score,
  the chosen ones are gathered; the gradient is the transpose, one scatter and one product. Time
  4·B·N·D operations and a few passes over B·K numbers; memory B·N and a few times B·K.
- `dense_contrast`: every key is a negative of every anchor, but for those of a mask. No gather, no
  scatter. Time 4·B·M·D operations for M keys; memory `BLOCK` numbers: keys are read in blocks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktf.functional.critics import Critic
from cktf.functional.precision import multiplies_bfloat16, product

# Scores that are worked on at a time, in numbers: 4 MB of float32.
BLOCK = 1 << 20


class Candidates:
    """Which keys are negatives of which anchors: those of another id.

    Args:
        anchor_ids: [B] int64, the anchors' classes, or their positions in the training set.
        key_ids: [M] int64, the keys' likewise; -1 for a key that is everyone's negative.
        negatives: K, to how many draws the negatives of each anchor are scaled.

    Attributes:
        negatives: K.
        share: [B] what each negative counts for: K over the number of them. An anchor without any
            has 0.
    """

    def __init__(self, anchor_ids: Tensor, key_ids: Tensor, negatives: int) -> None:
        self.negatives = negatives
        self._anchors, self._keys = anchor_ids.unsqueeze(1), key_ids
        # All sides of a batch read the same mask: it is kept if it is no larger than a few blocks.
        small = len(anchor_ids) * len(key_ids) <= 4 * BLOCK
        self._mask = self._masked(slice(None)) if small else None
        own = torch.zeros(len(anchor_ids), dtype=torch.int64, device=anchor_ids.device)
        for block in blocks(len(key_ids), len(anchor_ids)):
            own += (key_ids[block] == self._anchors).sum(1)
        count = len(key_ids) - own
        self.share = torch.where(count > 0, negatives / count.clamp_min(1), 0.0)

    def mask(self, block: slice) -> Tensor:
        """[B, n] float32: 0 where a key of the block is a negative, else minus infinity."""
        return self._masked(block) if self._mask is None else self._mask[:, block]

    def _masked(self, block: slice) -> Tensor:
        same = self._keys[block] == self._anchors
        mask = torch.zeros(same.shape, device=same.device)
        return mask.masked_fill_(same, -torch.inf)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        positive: Tensor,
        keys: Tensor,
        drawn: Tensor,
        temperature: float,
        critic: Critic,
    ) -> Tensor:
        with torch.autocast(anchor.device.type, enabled=False):
            rows, positive = anchor.float() / temperature, positive.float()
            every = _scores(rows, keys)
            weights = every.gather(1, drawn).float()
            total = critic.block(weights)
            own = (rows * positive).sum(1)
            loss, pull, push = critic.finish(own, total, 1.0)
            if ctx.needs_input_grad[0]:
                # The scores are done with: their memory, already mapped, takes the weights.
                _scatter(every, drawn, weights)
                gradient = torch.zeros_like(rows)
                for block, part in _converted(keys, len(rows)):
                    gradient += product(every[:, block], part)
                _keep(ctx, anchor, pull, push, positive, gradient, temperature)
        return loss.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, *([None] * 5)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        positive: Tensor,
        keys: Tensor,
        candidates: Candidates,
        temperature: float,
        critic: Critic,
    ) -> Tensor:
        with torch.autocast(anchor.device.type, enabled=False):
            rows, positive = anchor.float() / temperature, positive.float()
            total = torch.zeros(len(rows), device=rows.device)
            gradient = torch.zeros_like(rows)
            for block, part in _blocks(keys, len(rows)):
                weights = product(rows.to(part.dtype), part.t()).float()
                weights += candidates.mask(block)
                total += critic.block(weights)
                if ctx.needs_input_grad[0]:
                    gradient += product(weights.to(part.dtype), part)
            loss, pull, push = critic.finish((rows * positive).sum(1), total, candidates.share)
            if ctx.needs_input_grad[0]:
                _keep(ctx, anchor, pull, push, positive, gradient, temperature)
        return loss.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, *([None] * 5)


def _scores(rows: Tensor, keys: Tensor) -> Tensor:
    """[B, N] products of rows [B, D] with keys [N, D], in the type that these are multiplied in."""
    if _dtype(keys) == keys.dtype:
        return product(rows.to(keys.dtype), keys.t())
    every = torch.empty(len(rows), len(keys), device=rows.device, dtype=_dtype(keys))
    for block, part in _blocks(keys, len(rows)):
        every[:, block] = product(rows, part.t())
    return every


def _scatter(dense: Tensor, drawn: Tensor, weights: Tensor) -> None:
    """Weights [B, K] to their columns of [B, N], in place; those of a row drawn twice are added.

    They are added in float32: in another type a few anchors at a time, for the sake of memory.
    """
    if dense.dtype == weights.dtype:
        dense.zero_().scatter_add_(1, drawn, weights)
        return
    batch, size = dense.shape
    step = max(1, (BLOCK if dense.device.type == "cpu" else 16 * BLOCK) // size)
    for start in range(0, batch, step):
        some = slice(start, start + step)
        sums = torch.zeros_like(dense[some], dtype=weights.dtype)
        dense[some] = sums.scatter_add_(1, drawn[some], weights[some])


def _keep(
    ctx: Any,
    anchor: Tensor,
    pull: Tensor,
    push: Tensor,
    positive: Tensor,
    others: Tensor,
    temperature: float,
) -> None:
    """Save the gradient by the anchor for backward."""
    gradient = pull.unsqueeze(1) * positive + push.unsqueeze(1) * others
    ctx.save_for_backward((gradient / (len(anchor) * temperature)).to(anchor.dtype))


def _dtype(keys: Tensor) -> torch.dtype:
    """The type that products with the keys are computed in."""
    slow = keys.dtype == torch.bfloat16 and not multiplies_bfloat16(keys.device)
    return torch.float32 if slow else keys.dtype


def _converted(keys: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """The keys in the type that they are multiplied in: at once where that is theirs."""
    return iter([(slice(None), keys)]) if _dtype(keys) == keys.dtype else _blocks(keys, batch)


def _blocks(keys: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """The keys in blocks, in the type that they are multiplied in."""
    for block in blocks(len(keys), batch):
        yield block, keys[block].to(_dtype(keys))


def blocks(keys: int, batch: int) -> Iterator[slice]:
    """Slices of so many keys, each of which has `BLOCK` scores with a batch."""
    size = max(1, BLOCK // batch)
    return (slice(start, start + size) for start in range(0, keys, size))


def sampled_contrast(
    anchor: Tensor,
    positive: Tensor,
    keys: Tensor,
    drawn: Tensor,
    temperature: float,
    critic: Critic,
) -> Tensor:
    """Mean loss of anchors [B, D] with positives [B, D] against rows [B, K] of keys [N, D]."""
    loss: Tensor = _Sampled.apply(
        anchor, positive.detach(), keys.detach(), drawn, temperature, critic
    )
    return loss


def dense_contrast(
    anchor: Tensor,
    positive: Tensor,
    keys: Tensor,
    candidates: Candidates,
    temperature: float,
    critic: Critic,
) -> Tensor:
    """Mean loss of anchors [B, D] with positives [B, D] against all of keys [M, D] but the masked.

    An anchor without any negative counts its positive alone.
    """
    loss: Tensor = _Dense.apply(
        anchor, positive.detach(), keys.detach(), candidates, temperature, critic
    )
    return loss
