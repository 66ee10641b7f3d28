"""Time of a full training step over its floor, for pairs of the papers' networks.

    python benchmarks/step.py [--pairs resnet56:resnet20 …] [--precision float32] [--sizes]

The floor is what no transfer can do without: the teacher's forward pass, and the student's forward
and backward. Each method's step has these, its loss, its heads and the optimizer's step. All are
timed in turn within one process; contrast at the paper's settings unless its name says otherwise.
Where the time of a `sampled` step goes is read from PyTorch's profiler. The networks compute in
what training takes here, or as `--precision` says; the papers' do in float32. Steps whose cost
should not depend on N are timed at each of `--sizes`, 10^4 to 10^7 samples, which takes 12 GB.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from measure import alternate, keep, machine, median_ratio, table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from cktf.batch import Batch
from cktf.contrast import Draw, Memory
from cktf.engine import RuntimeConfig, start_runtime
from cktf.engine.config import Precision
from cktf.models import create
from cktf.objectives import BuildContext, Objective, WeightedSum, compose
from cktf.taps import Tap, eval_mode

PAIRS = ("resnet32x4:resnet8x4", "resnet56:resnet20", "wrn_40_2:wrn_16_2", "vgg13:vgg8")
CLASSES = 100
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "student alone": ("ce", {}),
    "kd": ("kd", {}),
    "crd sampled": ("crd", {"estimator": "sampled"}),
    "cktf sampled": ("cktf", {"estimator": "sampled"}),
    "cktf all": ("cktf", {"estimator": "all"}),
    "cktf shared": ("cktf", {"estimator": "shared"}),
    "cktf shared, K=4096": ("cktf", {"estimator": "shared", "negatives": 4096}),
    "cktf queue": ("cktf", {"memory": "queue"}),
    "cktf batch": ("cktf", {"memory": "batch"}),
    "cktf sampled, bfloat16": ("cktf", {"estimator": "sampled", "storage": "bfloat16"}),
    "cktf shared, bfloat16": ("cktf", {"estimator": "shared", "storage": "bfloat16"}),
}
# Two banks at 10^7 rows are 10 GB, CKTF's ten would be 51.
SCALED: dict[str, tuple[str, dict[str, object]]] = {
    "cktf queue": METHODS["cktf queue"],
    "crd shared": ("crd", {"estimator": "shared"}),
}
SCALED_PAIR, SIZES = "resnet56:resnet20", (10_000, 100_000, 1_000_000, 10_000_000)
EVERYTHING = ("embedding", "stem", "stages", "preacts")
PROFILED = ("cktf sampled", "cktf sampled, bfloat16")
NETWORKS, DRAW = "both networks", "draw"
PRODUCTS, CHOOSE = "products with all rows", "gather and scatter"
CRITIC, MAPS, REST = "losses and copies of the sides", "maps", "heads, banks, optimizer, rest"
# What is least in any form of `sampled` that has dense products.
BOUND = (NETWORKS, PRODUCTS, CHOOSE)
BACKWARD = ("Convolution", "NativeBatchNorm", "Relu", "Threshold", "MaxPool", "AvgPool2D")


class Steps:
    """The steps of one pair of networks."""

    def __init__(self, pair: str, batch: int, size: int, precision: Precision = "auto") -> None:
        torch.manual_seed(0)
        teacher, student = (create(name, CLASSES) for name in pair.split(":"))
        self.runtime = start_runtime(RuntimeConfig(device="cpu", precision=precision))
        for network in (teacher, student):
            self.runtime.to_device(network)
        self.teacher, self.student = teacher.eval().requires_grad_(False), student
        labels = torch.randint(CLASSES, (size,))
        index = torch.randperm(size)[:batch]
        images = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        self.batch = Batch(images, labels[index], index)
        with torch.no_grad(), eval_mode(student):
            own, other = (Tap(n, needs=EVERYTHING)(images[:8]) for n in (student, teacher))
        self.setting = BuildContext(own, other, size, labels)

    def floor(self) -> None:
        """Both networks, and nothing else."""
        self.student.zero_grad(set_to_none=True)
        with self.autocast():
            with torch.no_grad():
                self.teacher(self.batch.images)
            logits: Tensor = self.student(self.batch.images)
        logits.float().square().mean().backward()  # type: ignore[no-untyped-call]

    def autocast(self) -> AbstractContextManager[None]:
        """Within it, the networks compute in their precision."""
        return self.runtime.autocast()

    def compose(self, method: str, options: dict[str, dict[str, object]]) -> WeightedSum:
        """The objective of a method between the two networks."""
        return compose(method, self.setting, options)

    def of(self, method: str, options: dict[str, object]) -> "Step":
        """A step of one method."""
        return Step(self, self.compose(method, {method: options} if options else {}))


class Step:
    """One step of training, callable again and again."""

    def __init__(self, steps: Steps, objective: Objective) -> None:
        self.steps, self.objective = steps, objective
        self.student = Tap(steps.student, needs=objective.features)
        self.teacher = Tap(steps.teacher, needs=objective.features)
        trained: list[nn.Parameter] = [*steps.student.parameters(), *objective.parameters()]
        # A rate of zero: the networks stay the same for all methods.
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=5e-4)

    def __call__(self) -> None:
        """Forward, loss, backward, update."""
        steps, batch, teacher = self.steps, self.steps.batch, None
        with steps.autocast():
            with record_function(NETWORKS):
                if self.objective.needs_teacher:
                    with torch.no_grad():
                        teacher = self.teacher(batch.images)
                student = self.student(batch.images)
            loss = self.objective(student, teacher, batch)
        loss.total.backward()
        self.optimizer.step()
        self.objective.after_step()
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self, repeats: int) -> dict[str, float]:
        """Milliseconds of a step, by what they are spent on."""
        memory = next(m for m in self.objective.modules() if isinstance(m, Memory))
        draw, spent = memory.draw, Counter[str]()

        def drawn(index: Tensor) -> Draw:
            with record_function(DRAW):
                return draw(index)

        memory.draw = drawn  # type: ignore[method-assign]
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            for _ in range(repeats):
                self()
        memory.draw = draw  # type: ignore[method-assign]
        for event in recorded.events() or []:
            spent[part_of(event)] += event.self_cpu_time_total
        return {part: microseconds / 1e3 / repeats for part, microseconds in spent.items()}


def part_of(event: Any) -> str:
    """What an operation belongs to: by its own name, and by what called it."""
    callers = list(lineage(event))
    if "_Sampled" in callers:
        if event.name in ("aten::mm", "mkldnn::_linear_pointwise"):
            return PRODUCTS
        return CHOOSE if event.name in ("aten::gather", "aten::scatter_add_") else CRITIC
    for name in callers:
        if name in (NETWORKS, DRAW):
            return name
        if name.startswith("_PooledUnits"):
            return MAPS
        if name.endswith("Backward0") and any(kind in name for kind in BACKWARD):
            return NETWORKS
    return REST


def lineage(event: Any) -> Iterator[str]:
    """Names of an operation and of all that called it."""
    while event is not None:
        yield event.name
        event = event.cpu_parent


def main() -> None:
    """Parse, measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", nargs="*", default=PAIRS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=50_000)
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(machine())
    record: dict[str, object] = {"batch": args.batch, "size": args.size, "repeats": args.repeats}
    header = ["step", "ms", "over the floor", "images/s"]
    tables: dict[str, list[list[str]]] = {}
    profiles: dict[str, tuple[list[str], list[list[str]]]] = {}
    for pair in args.pairs:
        steps = Steps(pair, args.batch, args.size, args.precision)
        methods = {name: steps.of(*method) for name, method in METHODS.items()}
        times = alternate({"floor": steps.floor, **methods}, args.repeats)
        tables[pair] = [
            [
                name, f"{statistics.median(seconds) * 1e3:.0f}",
                f"{median_ratio(seconds, times['floor']):.2f}",
                f"{args.batch / statistics.median(seconds):.0f}",
            ]
            for name, seconds in times.items()
        ]  # fmt: skip
        print(f"\n{pair}: B={args.batch} N={args.size}, medians of {args.repeats} repeats")
        print(table(header, tables[pair]))
        parts = {name: methods[name].parts(args.repeats) for name in PROFILED}
        profiles[pair] = profiled(parts)
        print(table(*profiles[pair]))
    measured: dict[str, object] = {"header": header, "tables": tables, "profiles": profiles}
    if args.sizes:
        by_size = scaled(args.batch, args.sizes, args.precision, args.repeats)
        print(f"\n{SCALED_PAIR}: ms by N\n{table(*by_size)}")
        measured |= {"scaled": by_size, "scaled_pair": SCALED_PAIR}
    keep("step" if args.precision == "auto" else f"step-{args.precision}", record | measured)


def scaled(
    batch: int, sizes: Sequence[int], precision: Precision, repeats: int
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a step's milliseconds by N."""
    rows = []
    for name, method in SCALED.items():
        steps = {
            f"{size:,}": Steps(SCALED_PAIR, batch, size, precision).of(*method) for size in sizes
        }
        times = alternate(steps, repeats)
        rows.append([name, *(f"{statistics.median(t) * 1e3:.0f}" for t in times.values())])
    return ["step", *(f"{size:,}" for size in sizes)], rows


def profiled(parts: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of where the time of a step goes, and the least that it could take."""
    rows = [
        [part, *(f"{ms[part]:.0f}" for ms in parts.values())]
        for part in (NETWORKS, PRODUCTS, CHOOSE, CRITIC, DRAW, MAPS, REST)
    ]
    least = [sum(ms[p] for p in BOUND) / ms[NETWORKS] for ms in parts.values()]
    rows.append(["the first three over the first", *(f"{ratio:.2f}" for ratio in least)])
    return ["ms", *parts], rows


if __name__ == "__main__":
    main()
