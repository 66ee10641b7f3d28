"""Dense contrast in one pass over the keys, as a Triton kernel for CUDA GPUs.

The reference, and what runs everywhere else, is in `cktf.functional.contrast`. It forms the scores
of a block of keys, and reads and writes them for the mask, the critic and both products. Here a
program holds a tile of anchors, goes over a part of the keys, and keeps scores and weights in
registers: no number per anchor and key is stored, and rows of an index are read where they are.
Several programs share the keys of one tile of anchors, and each writes its own sums, which are
added in a fixed order: results repeat bit for bit.

Both products need 4·S·B·M·D operations, and the keys are read once: S·M·D numbers. For ten sides,
16,384 keys, D = 128 and float32, an H100 (3 TB/s; 60 TFLOP/s in float32, about 130 by three
products in TF32) takes at least 0.03 ms for the keys, and for the products 0.04 ms at a batch of
64 (0.09 ms by `ieee`) and 0.65 ms at 1,024 (1.4 ms). In bfloat16 (800 TFLOP/s) it is 0.014 ms for
the keys, and 0.007 and 0.11 ms for the products, next to about as much for the exponentials.

Importing this module imports Triton, which is part of PyTorch's wheels for CUDA, and no dependency.
"""

import math
import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True)
class Tiles:
    """How the work is cut.

    Attributes:
        anchors: of a program, at most; a power of two, 16 or more.
        keys: read at a time; a power of two from 16 to 64.
        warps: of a program.
        stages: tiles of keys that are read ahead, and the one in use.
        programs: for each multiprocessor, at least, if there are enough keys.
        precision: how float32 is multiplied: "ieee"; in three products of TF32, "tf32x3", or from
            Triton 3.6 on in six of bfloat16, "bf16x6", whose errors are about those of float32.
    """

    anchors: int
    keys: int
    warps: int
    stages: int
    programs: int = 4
    precision: str = "tf32x3"


# Triton multiplies in six products of bfloat16 from 3.6 on, and its interpreter does not.
_HAS_BF16X6 = (
    tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
    and os.environ.get("TRITON_INTERPRET") != "1"
)
# The fastest of benchmarks/contrast_kernel.py on an H200, for rows of 128.
_SIX_PRODUCTS = Tiles(anchors=32, keys=32, warps=4, stages=3, programs=8, precision="bf16x6")
# By the length of a row up to which they serve. None needs more than 99 KB of shared memory, which
# every GPU with bfloat16 has.
_FLOAT32_TILES = {
    128: _SIX_PRODUCTS if _HAS_BF16X6 else Tiles(anchors=32, keys=64, warps=8, stages=2),
    256: Tiles(anchors=32, keys=32, warps=8, stages=2, precision="ieee"),
    512: Tiles(anchors=16, keys=16, warps=8, stages=2, precision="ieee"),
}
_BFLOAT16_TILES = {
    128: Tiles(anchors=64, keys=64, warps=4, stages=3),
    256: Tiles(anchors=64, keys=32, warps=8, stages=2),
    512: Tiles(anchors=32, keys=32, warps=8, stages=2),
}


def choose_tiles(dim: int, dtype: torch.dtype) -> Tiles:
    """Tiles for keys of D numbers of a type, D up to 512."""
    table = _BFLOAT16_TILES if dtype == torch.bfloat16 else _FLOAT32_TILES
    return next(tiles for limit, tiles in table.items() if dim <= limit)


def dense_sums(
    rows: Tensor,
    keys: Tensor,
    anchor_ids: Tensor,
    key_ids: Tensor,
    *,
    key_index: Tensor | None = None,
    shift: Tensor | None = None,
    has_gradient: bool = True,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all keys but those with an anchor's id.

    Args:
        rows: [S, B, D] float32, the anchors, over the temperature; D up to 512.
        keys: [S, N, D] float32 or bfloat16.
        anchor_ids: [B] int64.
        key_ids: [M] int64.
        key_index: [M] int64, rows of the keys that are read; None for all, M = N.
        shift: [S] float32; the sums are of `softplus(x − shift)` with weights
            `sigmoid(x − shift)`; where it is None, of `exp(x)`, which are the weights too.
        has_gradient: whether the weighted keys are summed; else they are zero.
        tiles: how the work is cut; None for the choice by D and type.

    Returns:
        Sums [S, B] and sums of weighted keys [S, B, D], float32; [B] int64, the number of keys
        with the anchor's id.
    """
    sides, batch, dim = rows.shape
    tiles = tiles or choose_tiles(dim, keys.dtype)
    rows = rows.contiguous()
    keys = keys if keys.stride(2) == 1 else keys.contiguous()
    block_b = min(tiles.anchors, max(16, triton.next_power_of_2(batch)))
    anchor_tiles = triton.cdiv(batch, block_b)
    key_tiles = max(1, triton.cdiv(len(key_ids), tiles.keys))
    programs = tiles.programs * _num_multiprocessors(rows.device)
    # Tiles of keys for each of the programs that share them.
    span = triton.cdiv(key_tiles, triton.cdiv(programs, sides * anchor_tiles))
    splits = triton.cdiv(key_tiles, span)
    totals = rows.new_empty(sides, splits, batch)
    sums = rows.new_empty(sides, splits, batch, dim) if has_gradient else totals
    counts = torch.empty(splits, batch, dtype=torch.int32, device=rows.device)
    with torch.cuda.device_of(rows):
        _kernel[anchor_tiles, splits, sides](
            rows, keys, key_index, anchor_ids.contiguous(), key_ids.contiguous(),
            None if shift is None else shift.expand(sides).contiguous(),
            totals, sums, counts,
            batch, len(key_ids), span * tiles.keys, splits, keys.stride(0), keys.stride(1),
            dim=dim, block_b=block_b, block_m=tiles.keys,
            block_d=max(16, triton.next_power_of_2(dim)),
            has_gradient=has_gradient,
            product=product_type(keys.dtype, keys.device.type), precision=tiles.precision,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    weighted_keys = sums.sum(1) if has_gradient else torch.zeros_like(rows)
    return totals.sum(1), weighted_keys, counts.sum(0)


def product_type(dtype: torch.dtype, device_type: str = "cuda") -> tl.dtype:
    """The type that both products are computed in; on a CPU the interpreter has no bfloat16's."""
    return tl.bfloat16 if dtype == torch.bfloat16 and device_type == "cuda" else tl.float32


def _num_multiprocessors(device: torch.device) -> int:
    """Of a GPU; of one that is not there, a few, so that tests see several parts of the keys."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def _join(a, b):
    # (1 + a)(1 + b) − 1: a sum of positive terms, without loss.
    return a + b + a * b


@triton.jit
def _log1p(x):
    # Exact to rounding for small x too (Kahan): what 1 + x rounds away is given back.
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit(do_not_specialize=["batch", "num_keys", "span", "splits"])
def _kernel(
    rows, keys, key_index, anchor_ids, key_ids, shift, totals, sums, counts,
    batch, num_keys, span, splits, side_stride, row_stride,
    dim: tl.constexpr, block_b: tl.constexpr, block_m: tl.constexpr, block_d: tl.constexpr,
    has_gradient: tl.constexpr, product: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    split, side = tl.program_id(1), tl.program_id(2)
    anchors = tl.program_id(0) * block_b + tl.arange(0, block_b)
    columns = tl.arange(0, block_d)
    inside = (anchors < batch)[:, None] & (columns < dim)[None, :]
    row_offsets = (side * batch + anchors).to(tl.int64)[:, None] * dim + columns[None, :]
    anchor = tl.load(rows + row_offsets, inside, 0.0).to(product)
    ids = tl.load(anchor_ids + anchors, anchors < batch, 0)
    if shift is not None:
        constant = tl.load(shift + side)
    total = tl.zeros([block_b], tl.float32)
    same = tl.zeros([block_b], tl.int32)
    weighted = tl.zeros([block_b, block_d], tl.float32)
    keys += side.to(tl.int64) * side_stride
    end = tl.minimum(split * span + span, num_keys)
    for start in range(split * span, end, block_m):
        places = start + tl.arange(0, block_m)
        there = places < end
        source = places.to(tl.int64) if key_index is None else tl.load(key_index + places, there, 0)
        offsets = source[:, None] * row_stride + columns[None, :]
        if dim == block_d:
            key = tl.load(keys + offsets, there[:, None], 0.0)
        else:
            key = tl.load(keys + offsets, there[:, None] & (columns < dim)[None, :], 0.0)
        key = key.to(product)
        own = ids[:, None] == tl.load(key_ids + places, there, 0)[None, :]
        same += tl.sum((own & there[None, :]).to(tl.int32), 1)
        x = tl.dot(anchor, tl.trans(key), input_precision=precision)
        masked = own | (places >= end)[None, :]
        if shift is not None:
            x = tl.where(masked, -float("inf"), x - constant)
            e = tl.exp2(tl.abs(x) * -_LOG2E)
            # One logarithm for all keys of a tile: at most 64 factors, each at most 2.
            total += _log1p(tl.reduce(e, 1, _join)) + tl.sum(tl.maximum(x, 0.0), 1)
            weights = tl.where(x < 0, e, 1.0) / (1.0 + e)
        else:
            weights = tl.where(masked, 0.0, tl.exp2(x * _LOG2E))
            total += tl.sum(weights, 1)
        if has_gradient:
            weighted = tl.dot(weights.to(product), key, weighted, input_precision=precision)
    place = (side * splits + split) * batch + anchors
    tl.store(totals + place, total, anchors < batch)
    if side == 0:
        tl.store(counts + split * batch + anchors, same, anchors < batch)
    if has_gradient:
        tl.store(sums + place.to(tl.int64)[:, None] * dim + columns[None, :], weighted, inside)
