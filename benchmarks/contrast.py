"""Time the fused contrastive loss against the row-copying formulation of the published code.

    python benchmarks/contrast.py [--batch 64] [--negatives 16384] [--size 50000] [--dim 128]

One anchor side, forward and backward, float32. Both are timed in turn within one process; the
medians and their ratio are printed with the machine and versions.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cktf.contrast.negatives import NegativeSampler
from cktf.functional import nce_loss
from cktf.functional.critics import EPSILON


def naive_nce(anchor: Tensor, bank: Tensor, contrast_index: Tensor, tau: float, z: float) -> Tensor:
    """The definition as published code computes it: K+1 bank rows are copied for every anchor."""
    rows = bank.index_select(0, contrast_index.reshape(-1)).view(*contrast_index.shape, -1)
    p = torch.bmm(rows, anchor.unsqueeze(2)).squeeze(2).div(tau).exp() / z
    noise = (contrast_index.shape[1] - 1) / len(bank)
    positive = (p[:, 0] / (p[:, 0] + noise + EPSILON)).log().sum()
    negative = (noise / (p[:, 1:] + noise + EPSILON)).log().sum()
    return -(positive + negative) / len(anchor)


def seconds(step: Callable[[Tensor], Tensor], anchor: Tensor) -> float:
    """Wall time of one forward and backward."""
    anchor = anchor.clone().requires_grad_()
    start = time.perf_counter()
    step(anchor).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in {
        "batch": 64,
        "negatives": 16384,
        "size": 50_000,
        "dim": 128,
        "repeats": 9,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.manual_seed(0)
    bank = F.normalize(torch.randn(args.size, args.dim), dim=1)
    anchor = F.normalize(torch.randn(args.batch, args.dim), dim=1)
    labels = torch.randint(100, (args.size,))
    sampler = NegativeSampler(args.size, labels)
    index = torch.randint(args.size, (args.batch,))
    contrast_index = sampler.draw(index, args.negatives)
    tau, z = 0.1, float(args.size) * 1.5

    def naive(a: Tensor) -> Tensor:
        return naive_nce(a, bank, contrast_index, tau, z)

    def fused(a: Tensor) -> Tensor:
        return nce_loss(a, bank, contrast_index, temperature=tau, normalizer=z)

    torch.testing.assert_close(naive(anchor), fused(anchor), rtol=1e-4, atol=1e-4)
    times: dict[str, list[float]] = {"naive": [], "fused": [], "draw": []}
    for repeat in range(args.repeats + 2):
        start = time.perf_counter()
        sampler.draw(index, args.negatives)
        row = {"draw": time.perf_counter() - start}
        row |= {"naive": seconds(naive, anchor), "fused": seconds(fused, anchor)}
        if repeat >= 2:
            for name, value in row.items():
                times[name].append(value)
    ratios = [n / f for n, f in zip(times["naive"], times["fused"], strict=True)]

    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"B={args.batch} K={args.negatives} N={args.size} D={args.dim}, float32, forward + backward"
    )
    print(f"medians (min to max) of {args.repeats} repeats:")
    for name, what in {
        "naive": "row-copying, one anchor side",
        "fused": "nce_loss, one anchor side",
        "draw": "negatives of the whole batch, drawn once for all sides",
    }.items():
        print(f"  {name:6}{spread([v * 1e3 for v in times[name]], 'ms')}  {what}")
    print(f"ratio naive : fused{spread(ratios, '')}")


def spread(values: list[float], unit: str) -> str:
    """Median with the smallest and largest value."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):9.1f} {unit} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
