"""Time and memory of the contrastive loss, one anchor side, forward and backward.

    python benchmarks/contrast.py [--quick]

Compares the row-copying formulation of the published code with every estimator, for both types of
the banks: medians of repeats taken in turn, and peak memory, each in a process of its own. Then the
same in N, K, D and B, one at a time. `--quick` leaves the scaling out.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from measure import alternate, keep, machine, median_ratio, peak_memory_mb, table
from torch import Tensor
from torch.nn import functional as F

from cktf.contrast import Bank, Estimator, Memory, Queue, Storage, random_bank
from cktf.functional.contrast import Candidates, contrast_loss
from cktf.functional.critics import EPSILON, NCECritic

TAU, CLASSES = 0.1, 100
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """The paper's settings, but for what is changed."""

    batch: int = 64
    negatives: int = 16384
    size: int = 50_000
    dim: int = 128


PAPER = Case()
VARIANTS = (
    "naive", "sampled float32", "all float32", "shared float32", "queue float32",
    "sampled bfloat16", "all bfloat16", "shared bfloat16", "queue bfloat16",
)  # fmt: skip
SCALING = {
    "size": (10_000, 100_000, 1_000_000, 10_000_000),
    "negatives": (1024, 4096, 16384, 65536),
    "dim": (64, 128, 256),
    "batch": (32, 64, 128, 256),
}


def naive_nce(anchor: Tensor, bank: Tensor, contrast_index: Tensor, tau: float, z: float) -> Tensor:
    """The definition as published code computes it: K+1 bank rows are copied for every anchor."""
    rows = bank.index_select(0, contrast_index.reshape(-1)).view(*contrast_index.shape, -1)
    p = torch.bmm(rows, anchor.unsqueeze(2)).squeeze(2).div(tau).exp() / z
    noise = (contrast_index.shape[1] - 1) / len(bank)
    positive = (p[:, 0] / (p[:, 0] + noise + EPSILON)).log().sum()
    negative = (noise / (p[:, 1:] + noise + EPSILON)).log().sum()
    return -(positive + negative) / len(anchor)


def build(variant: str, case: Case) -> tuple[Step, Step]:
    """One side's forward and backward, and the draw of negatives that all sides share."""
    torch.manual_seed(0)
    estimator, _, storage = variant.partition(" ")
    anchor = F.normalize(torch.randn(case.batch, case.dim), dim=1)
    positive = F.normalize(torch.randn(case.batch, case.dim), dim=1)
    labels = torch.randint(CLASSES, (case.size,))
    index = torch.randint(case.size, (case.batch,))
    memory = memory_for(estimator, case, labels)
    rows_type: Storage = "bfloat16" if storage == "bfloat16" else "float32"
    bank = random_bank(memory.num_rows, case.dim, rows_type)
    z = float(memory.num_rows) * 1.5
    critic = NCECritic(torch.tensor(z).log(), case.negatives, memory.num_rows)
    draw, contrast_index = memory.draw(index), None
    if estimator == "naive":
        assert isinstance(draw.negatives, Tensor)
        contrast_index = torch.cat([index.unsqueeze(1), draw.negatives], dim=1)

    def side(own: Tensor) -> Tensor:
        if contrast_index is not None:
            return naive_nce(own, bank, contrast_index, TAU, z)
        if isinstance(draw.negatives, Candidates):
            keys = bank if draw.key_index is None else bank.index_select(0, draw.key_index)
            return contrast_loss(own, positive, keys, draw.negatives, TAU, critic)
        return contrast_loss(own, bank[index], bank, draw.negatives, TAU, critic)

    def step() -> None:
        side(anchor.clone().requires_grad_()).backward()  # type: ignore[no-untyped-call]

    return step, lambda: memory.draw(index)


def memory_for(estimator: str, case: Case, labels: Tensor) -> Memory:
    """The memory of a variant: the published code draws as `sampled` does."""
    if estimator == "queue":
        return Queue(case.size, labels, case.negatives, "all", case.negatives)
    names: dict[str, Estimator] = {"all": "all", "shared": "shared"}
    return Bank(case.size, labels, case.negatives, names.get(estimator, "sampled"))


def memory_of(variant: str) -> float:
    """Peak memory of a step beside the bank, in MiB, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def at_the_papers_settings(repeats: int) -> tuple[list[list[object]], dict[str, float]]:
    """Rows of the first table, and the figures by name."""
    built = {variant: build(variant, PAPER) for variant in VARIANTS}
    times = alternate({name: step for name, (step, _) in built.items()}, repeats)
    draws = alternate({name: draw for name, (_, draw) in built.items()}, repeats)
    memory = {name: memory_of(name) for name in VARIANTS}
    rows: list[list[object]] = []
    figures: dict[str, float] = {}
    for name in VARIANTS:
        ratio = median_ratio(times["naive"], times[name])
        figures[name] = ratio
        rows.append([
            name, f"{_ms(times[name]):.1f}", f"{ratio:.1f}", f"{_ms(draws[name]):.1f}",
            f"{memory[name]:.0f}", f"{memory['naive'] / max(memory[name], 0.1):.0f}",
        ])  # fmt: skip
    return rows, figures


def scaling(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Median milliseconds of a side, by what is changed and by variant."""
    found: dict[str, dict[str, list[float]]] = {}
    for what, values in SCALING.items():
        found[what] = {}
        for variant in ("sampled float32", "all float32", "shared float32", "queue float32"):
            medians = []
            for value in values:
                step, _ = build(variant, replace(PAPER, **{what: value}))
                fewer = 1 if value >= 1_000_000 and variant.startswith(("all", "sam")) else repeats
                medians.append(_ms(alternate({"": step}, fewer, warmup=1)[""]))
            found[what][variant] = medians
    return found


def _ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory-of", choices=VARIANTS)
    args = parser.parse_args()
    if args.memory_of:
        step, draw = build(args.memory_of, PAPER)
        print(peak_memory_mb(lambda: (draw(), step())))
        return
    print(machine())
    print(f"{PAPER}, one anchor side, forward + backward, medians of {args.repeats} repeats")
    header = ["variant", "ms", "naive : it", "draw ms", "peak MiB", "naive : it"]
    rows, ratios = at_the_papers_settings(args.repeats)
    print(table(header, rows))
    record = {"case": vars(PAPER), "header": header, "rows": rows, "ratios": ratios}
    if not args.quick:
        record["scaling"] = found = scaling(min(5, args.repeats))
        record["scaled"] = SCALING
        for what, by_variant in found.items():
            print(f"\nms by {what}")
            print(table(
                ["variant", *map(str, SCALING[what])],
                [[name, *(f"{ms:.1f}" for ms in values)] for name, values in by_variant.items()],
            ))  # fmt: skip
        keep("contrast", record)


if __name__ == "__main__":
    main()
