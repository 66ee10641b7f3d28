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
  scatter. Time 4·B·M·D operations for M keys; memory `block_size` numbers: keys are read in blocks.
  On GPUs one kernel does it in a pass: `cktf.functional.dense_kernel`.

S sides, each with anchors and keys of its own and the negatives in common, are computed together,
as many at a time as a block holds.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cktf.functional.critics import Critic
from cktf.functional.precision import fast_matmul, has_fast_bfloat16

BLOCK, _GPU_BLOCK = 1 << 20, 1 << 24
_MAX_KERNEL_DIM = 512
_kernel_allowed = True
# On a CPU the products of several sides are copied together, which pays for small ones only.
_CPU_SIDES_BLOCK = 1 << 18


def block_size(device: torch.device) -> int:
    """Scores of one block: 4 MB of float32 for a CPU's cache, 64 MB to keep a GPU busy."""
    return BLOCK if device.type == "cpu" else _GPU_BLOCK


class Candidates:
    """Which keys are negatives of which anchors: those with another id.

    Args:
        anchor_ids: [B] int64, the anchors' classes, or their positions in the training set.
        key_ids: [M] int64, the same for the keys; -1 for a key that is everyone's negative.
        negatives: K, the number of draws to which the negatives of each anchor are scaled.

    Attributes:
        negatives, anchor_ids, key_ids: as given.
    """

    def __init__(self, anchor_ids: Tensor, key_ids: Tensor, negatives: int) -> None:
        self.negatives = negatives
        self.anchor_ids, self.key_ids = anchor_ids, key_ids

    @functools.cached_property
    def share(self) -> Tensor:
        """[B] weight of each negative: K over their number; 0 for an anchor without any."""
        anchor_ids, key_ids = self.anchor_ids, self.key_ids
        same = torch.zeros(len(anchor_ids), dtype=torch.int64, device=anchor_ids.device)
        for block in _slices(len(key_ids), len(anchor_ids), key_ids.device):
            same += (key_ids[block] == anchor_ids.unsqueeze(1)).sum(1)
        return self.share_without(same)

    def share_without(self, same: Tensor) -> Tensor:
        """The share of anchors, of which so many [B] keys have the id."""
        count = len(self.key_ids) - same
        return torch.where(count > 0, self.negatives / count.clamp_min(1), 0.0)

    def mask(self, block: slice) -> Tensor:
        """[B, n] float32: 0 where a key of the block is a negative, else minus infinity."""
        return self._build_mask(block) if self._mask is None else self._mask[:, block]

    @functools.cached_property
    def _mask(self) -> Tensor | None:
        # Every anchor side reads this mask; it is stored if it is no larger than a few blocks.
        size = len(self.anchor_ids) * len(self.key_ids)
        small = size <= 4 * block_size(self.key_ids.device)
        return self._build_mask(slice(None)) if small else None

    def _build_mask(self, block: slice) -> Tensor:
        same = self.key_ids[block] == self.anchor_ids.unsqueeze(1)
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
        key_index: Tensor | None,
    ) -> Tensor:
        has_gradient = ctx.needs_input_grad[0]
        with torch.autocast(anchor.device.type, enabled=False):
            rows, positive = anchor.float() / temperature, positive.float()
            if keys.device != rows.device:
                keys, key_index = select_rows(keys, key_index, rows), None
            if isinstance(negatives, Candidates) and _has_kernel(rows, keys):
                sums = _sum_by_kernel(critic, rows, keys, negatives, key_index, has_gradient)
            else:
                sums = _sum_by_blocks(critic, rows, keys, negatives, key_index, has_gradient)
            total, weighted_keys, share = sums
            loss, pull, push = critic.finish((rows * positive).sum(-1), total, share)
            if has_gradient:
                gradient = pull.unsqueeze(-1) * positive + push.unsqueeze(-1) * weighted_keys
                gradient /= anchor.shape[1] * temperature
                ctx.save_for_backward(gradient.to(anchor.dtype))
        return loss.mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_output.view(-1, 1, 1) * gradient, *([None] * 6)


def _has_kernel(rows: Tensor, keys: Tensor) -> bool:
    """Whether the Triton kernel serves: on NVIDIA's GPUs from Ampere on."""
    return (
        _kernel_allowed
        and rows.device.type == "cuda"
        # It is given no fake tensors.
        and type(rows) is type(keys) is Tensor
        and keys.dtype in (torch.float32, torch.bfloat16)
        and rows.shape[-1] <= _MAX_KERNEL_DIM
        and torch.version.cuda is not None
        and has_fast_bfloat16(rows.device)
        and _has_triton()
    )


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@contextmanager
def without_kernel() -> Iterator[None]:
    """Compute dense contrast block by block on GPUs too, to compare both ways."""
    global _kernel_allowed
    before, _kernel_allowed = _kernel_allowed, False
    try:
        yield
    finally:
        _kernel_allowed = before


def _sum_by_kernel(
    critic: Critic,
    rows: Tensor,
    keys: Tensor,
    candidates: Candidates,
    key_index: Tensor | None,
    has_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """The critic's sums [S, B], sums of weighted keys [S, B, D], and the share of the anchors."""
    from cktf.functional.dense_kernel import dense_sums

    total, weighted_keys, same = dense_sums(
        rows, keys, candidates.anchor_ids, candidates.key_ids,
        key_index=key_index, shift=critic.shift, has_gradient=has_gradient,
    )  # fmt: skip
    return total, weighted_keys, candidates.share_without(same)


def _sum_by_blocks(
    critic: Critic,
    rows: Tensor,
    keys: Tensor,
    negatives: Tensor | Candidates,
    key_index: Tensor | None,
    has_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """As `_sum_by_kernel`, for drawn negatives too, whose share is 1."""
    total, weighted_keys = torch.zeros_like(rows[..., 0]), torch.zeros_like(rows)
    key_count = keys.shape[1] if key_index is None else len(key_index)
    for sides in _group_sides(rows, key_count):
        chosen = select_rows(keys[sides], key_index, rows)
        part = critic.of_sides(sides), rows[sides], chosen
        sums = total[sides], weighted_keys[sides]
        if isinstance(negatives, Candidates):
            _sum_dense(*part, negatives, has_gradient, *sums)
        else:
            _sum_sampled(*part, negatives, has_gradient, *sums)
    return total, weighted_keys, negatives.share if isinstance(negatives, Candidates) else 1.0


def select_rows(banks: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """Rows of banks [S, N, D], all or those of an index, on the device of another tensor."""
    # index_select is five times faster than indexing, on the CPU.
    chosen = banks if index is None else banks.index_select(1, index.to(banks.device))
    return chosen.to(like.device)


def _group_sides(rows: Tensor, key_count: int) -> Iterator[slice]:
    """Slices of the sides that are computed together."""
    block = _CPU_SIDES_BLOCK if rows.device.type == "cpu" else _GPU_BLOCK
    size = max(1, block // (rows.shape[1] * key_count))
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _sum_sampled(
    critic: Critic,
    rows: Tensor,
    keys: Tensor,
    negative_index: Tensor,
    has_gradient: bool,
    total: Tensor,
    weighted_keys: Tensor,
) -> None:
    """Add the critic's sums over the negatives [S, B], and the sums of their weighted keys."""
    scores = _all_scores(rows, keys)
    negative_index = negative_index.expand(len(rows), -1, -1)
    weights = scores.gather(2, negative_index).float()
    total += critic.block(weights)
    if has_gradient:
        # The scores are read; the weights reuse their memory, which is mapped already.
        _scatter_add(scores.flatten(0, 1), negative_index.flatten(0, 1), weights.flatten(0, 1))
        whole = _product_dtype(keys) == keys.dtype
        for block, key_block in [(slice(None), keys)] if whole else _blocks(keys, rows.shape[1]):
            weighted_keys += fast_matmul(scores[..., block], key_block)


def _sum_dense(
    critic: Critic,
    rows: Tensor,
    keys: Tensor,
    candidates: Candidates,
    has_gradient: bool,
    total: Tensor,
    weighted_keys: Tensor,
) -> None:
    """As `_sum_sampled`, over all keys but the masked."""
    for block, key_block in _blocks(keys, rows.shape[1]):
        weights = fast_matmul(rows.to(key_block.dtype), key_block.mT).float()
        weights += candidates.mask(block)
        total += critic.block(weights)
        if has_gradient:
            weighted_keys += fast_matmul(weights.to(key_block.dtype), key_block)


def _all_scores(rows: Tensor, keys: Tensor) -> Tensor:
    """[S, B, N] products of rows [S, B, D] with keys [S, N, D], in the type of these products."""
    if _product_dtype(keys) == keys.dtype:
        return fast_matmul(rows.to(keys.dtype), keys.mT)
    shape = (*rows.shape[:2], keys.shape[1])
    scores = torch.empty(shape, device=rows.device, dtype=_product_dtype(keys))
    for block, key_block in _blocks(keys, rows.shape[1]):
        scores[..., block] = fast_matmul(rows, key_block.mT)
    return scores


def _scatter_add(dense: Tensor, negative_index: Tensor, weights: Tensor) -> None:
    """Add weights [R, K] into their columns of [R, N], in place; the old values are discarded.

    Sums are formed in float32; in another type a few rows at a time, to save memory.
    """
    if dense.dtype == weights.dtype:
        dense.zero_().scatter_add_(1, negative_index, weights)
        return
    step = max(1, block_size(dense.device) // dense.shape[1])
    for start in range(0, len(dense), step):
        rows = slice(start, start + step)
        sums = torch.zeros_like(dense[rows], dtype=weights.dtype)
        dense[rows] = sums.scatter_add_(1, negative_index[rows], weights[rows])


def _product_dtype(keys: Tensor) -> torch.dtype:
    """The type that products with the keys are computed in."""
    slow = keys.dtype == torch.bfloat16 and not has_fast_bfloat16(keys.device)
    return torch.float32 if slow else keys.dtype


def _blocks(keys: Tensor, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """The keys [S, N, D] in blocks, in the type of the products."""
    for block in _slices(keys.shape[1], batch, keys.device):
        yield block, keys[:, block].to(_product_dtype(keys))


def _slices(keys: int, batch: int, device: torch.device) -> Iterator[slice]:
    """Slices of the keys, each with a block of scores for a batch."""
    size = max(1, block_size(device) // batch)
    return (slice(start, start + size) for start in range(0, keys, size))


def contrast_losses(
    anchor: Tensor,
    positive: Tensor,
    keys: Tensor,
    negatives: Tensor | Candidates,
    temperature: float,
    critic: Critic,
    key_index: Tensor | None = None,
) -> Tensor:
    """Mean losses [S] of anchors [S, B, D] with positives [S, B, D] against keys [S, N, D].

    The keys are those of `key_index` where it is given. The negatives are rows [B, K] of each
    side's keys, or all keys but the masked. An anchor without any negative counts its positive
    alone.
    """
    losses: Tensor = _Contrast.apply(
        anchor, positive.detach(), keys.detach(), negatives, temperature, critic, key_index
    )
    return losses


def contrast_loss(
    anchor: Tensor,
    positive: Tensor,
    keys: Tensor,
    negatives: Tensor | Candidates,
    temperature: float,
    critic: Critic,
) -> Tensor:
    """Mean loss of one side: anchors [B, D] with positives [B, D] against keys [N, D]."""
    return contrast_losses(
        anchor[None], positive[None], keys[None], negatives, temperature, critic
    ).squeeze(0)
