"""Time and memory of every method: of a training step, and of its loss against the published form.

    python benchmarks/methods.py [--pair resnet32x4:resnet8x4] [--batch 64] [--repeats 5]

The first table is of whole training steps, alone and with CKTF added (16384 negatives drawn once
for the batch, N = 50,000), relative to a step of the student alone; those with a first phase have a
row for its step. The second is of the losses alone, forward and backward, on the two networks'
features, against the formulation of the published results, which `tests/naive_losses.py` keeps.
Memory is that of the tensors which a step holds at most, beside those that stay.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import alternate, keep, machine, median_ratio, peak_allocated_mb, table
from step import Step, Steps
from torch import Tensor
from torch.nn import functional as F

from cktf import functional
from cktf.objectives import METHODS, Objective, Phase
from cktf.taps import Features, Tap

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import naive_losses

PAIR = "resnet32x4:resnet8x4"
CONTRAST: dict[str, object] = {"estimator": "shared"}
ALONE = "ce"
CLASSIC = ("kd", "at", "sp", "cc", "vid", "rkd", "pkt", "ab", "ft", "fsp", "nst", "kdsvd")
OURS, PUBLISHED = "ours", "published"
QUICK, MANY = 0.05, 200
Loss = Callable[[], Tensor]


class First:
    """A step of a method's first phase."""

    def __init__(self, steps: Steps, phase: Phase) -> None:
        self.steps, self.phase = steps, phase
        self.step = Step(steps, phase.objective)

    def __call__(self) -> None:
        """The same as a step of training, or without the student where that does not train."""
        if self.phase.trains_student:
            self.step()
            return
        steps = self.steps
        with torch.no_grad(), steps.autocast():
            teacher = self.step.teacher(steps.batch.images)
        with steps.autocast():
            loss = self.phase.objective(teacher, teacher, steps.batch)
        loss.total.backward()
        self.step.optimizer.step()
        self.step.optimizer.zero_grad(set_to_none=True)


def timed(steps: Steps, method: str) -> dict[str, Callable[[], None]]:
    """A method's step, and those of its first phases."""
    objective = steps.compose(method, {n: CONTRAST for n in ("crd", "cktf") if n in method})
    found: dict[str, Callable[[], None]] = {method: Step(steps, objective)}
    if "+" not in method:
        found |= {f"{method}: first phase": First(steps, p) for p in objective.phases()}
    return found


def losses(name: str, steps: Steps) -> dict[str, Loss]:
    """A loss on the two networks' features, as it is here and as it was published."""
    objective: Objective = steps.compose(name, {}).terms[name]  # type: ignore[assignment]
    needs = objective.features
    with torch.no_grad():
        student, teacher = (
            Tap(n, needs=needs)(steps.batch.images) for n in (steps.student, steps.teacher)
        )
    own, other = (_read(name, f, objective) for f in (student, teacher))
    published = getattr(naive_losses, name)
    rest: tuple[Tensor, ...] = ()
    if name == "vid":
        # One stage, of the teacher's shape: what follows the regressor.
        own, other, rest = own[0], other[0], (torch.zeros(other[0].shape[1]),)

    def run(function: Callable[..., Tensor]) -> Loss:
        def loss() -> Tensor:
            several = isinstance(own, list)
            leaves = [m.clone().requires_grad_() for m in (own if several else [own])]
            value = function(leaves if several else leaves[0], other, *rest)
            if name != "kdsvd":
                value.backward()  # type: ignore[no-untyped-call]
            return value

        return loss

    return {OURS: run(getattr(functional, f"{name}_loss")), PUBLISHED: run(published)}


def _read(name: str, features: Features, objective: Objective) -> Any:
    """What a loss takes of one network's features."""
    reads = METHODS[name].requires
    if name == "cc":
        return F.normalize(torch.randn(len(features.logits), 128))
    if "embedding" in reads:
        return features.embedding
    if "logits" in reads:
        return features.logits
    if "preacts" in reads:
        return list(features.preacts)
    stages = list(features.stages)
    if name == "fsp":
        return [features.stem, *stages]
    return stages[-1] if name in {"sp", "ft"} else stages


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pair", default=PAIR)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    steps = Steps(args.pair, args.batch, size=50_000)
    print(machine())
    print(f"{args.pair.replace(':', ' to ')}, B={args.batch}, medians of {args.repeats} repeats")
    whole = table_of_steps(steps, args.repeats)
    print(table(*whole))
    alone = table_of_losses(steps, args.repeats)
    print(f"\n{table(*alone)}")
    keep("methods", {
        "pair": args.pair, "batch": args.batch, "repeats": args.repeats, "steps": whole,
        "losses": alone,
    })  # fmt: skip


def table_of_steps(steps: Steps, repeats: int) -> tuple[list[str], list[list[str]]]:
    """Steps relative to the student alone."""
    base = steps.compose(ALONE, {})
    rows = []
    for name in METHODS:
        several = timed(steps, name)
        if name not in {ALONE, "cktf"}:
            several |= timed(steps, f"cktf+{name}")
        times = alternate({"": Step(steps, base), **several}, repeats)
        for method, seconds in list(times.items())[1:]:
            memory = peak_allocated_mb(several[method])
            ratio = median_ratio(seconds, times[""])
            ms = statistics.median(seconds) * 1e3
            rows.append([method, f"{ms:.0f}", f"{ratio:.2f}", f"{memory:.0f}"])
    floor = float(next(row[3] for row in rows if row[0] == ALONE))
    return (
        ["step", "ms", "time : student alone", "peak MiB", "memory : student alone"],
        [[*row, f"{float(row[3]) / floor:.2f}"] for row in rows],
    )


def table_of_losses(steps: Steps, repeats: int) -> tuple[list[str], list[list[str]]]:
    """Losses here and as published."""
    rows = []
    for name in CLASSIC:
        both = losses(name, steps)
        # A loss of microseconds needs many repeats to be told from another.
        quick = max(max(t) for t in alternate(both, 1).values()) < QUICK
        times = alternate(both, max(repeats, MANY) if quick else repeats)
        memory = {kind: peak_allocated_mb(loss) for kind, loss in both.items()}
        rows.append([
            name,
            *(f"{statistics.median(times[kind]) * 1e3:.1f}" for kind in (OURS, PUBLISHED)),
            f"{median_ratio(times[PUBLISHED], times[OURS]):.2f}",
            *(f"{memory[kind]:.1f}" for kind in (OURS, PUBLISHED)),
            f"{memory[PUBLISHED] / max(memory[OURS], 0.1):.1f}",
        ])  # fmt: skip
    return (
        ["loss", "ms", "published", "published : ms", "peak MiB", "published", "published : MiB"],
        rows,
    )


if __name__ == "__main__":
    main()
