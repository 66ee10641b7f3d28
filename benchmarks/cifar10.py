"""Compare methods, and choices of the contrastive engine, on CIFAR-10; stop and continue freely.

    python benchmarks/cifar10.py --data-dir DIR [--cells kd cktf "cktf queue" …] [--seeds 0 1 2]
    python benchmarks/cifar10.py --list
    python benchmarks/cifar10.py --table

Teacher wrn_16_2, 12 epochs, its weights in results/; student resnet8, 8 epochs, onecycle, both in
bfloat16. A cell is one student with one seed; each leaves results/cifar10/CELL-seedS.json when it
is done, and is then not trained again. With `--together 5`, five students take turns with one pass
of the teacher: the same results, sooner. Several processes may share the work: each takes cells
that no other has. `--table` prints what there is.
"""

import argparse
import fcntl
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from measure import table

import cktf
from cktf.recipes import DistillRecipe, make_recipe
from cktf.workflows import distill_together

TEACHER, STUDENT, EPOCHS = "wrn_16_2", "resnet8", 8
RESULTS = Path(__file__).parents[1] / "results"
CELLS = RESULTS / "cifar10"
# One draw of fewer negatives than the paper's 16384 for the whole batch, for the time it takes.
CONTRAST: dict[str, Any] = {"negatives": 4096, "estimator": "shared"}
CHOICES: dict[str, dict[str, Any]] = {
    "sampled": {"estimator": "sampled"},
    "all": {"estimator": "all"},
    "queue": {"memory": "queue", "queue_size": 16384, "estimator": None},
    "batch": {"memory": "batch", "estimator": None},
    "infonce": {"critic": "infonce"},
    "infonce all": {"estimator": "all", "critic": "infonce"},
    "infonce queue": {
        "memory": "queue", "queue_size": 16384, "critic": "infonce", "estimator": None,
    },
    "infonce batch": {"memory": "batch", "critic": "infonce", "estimator": None},
    "forward": {"init": "forward"},
    "renormalized": {"renormalize": (2, 4)},
    "forward renormalized": {"init": "forward", "renormalize": (2, 4)},
    "bfloat16": {"storage": "bfloat16"},
    "no norm": {"module_norm": "none"},
    "sample norm": {"module_norm": "sample"},
    "smallest": {"match": "smallest"},
}  # fmt: skip
# FSP takes networks of equal widths only; KD is there with its own weights and with CKTF's.
OTHERS = [name for name in cktf.objectives.METHODS if name not in {"ce", "kd", "cktf", "fsp"}]
METHODS = ["ce", "kd", "kd:1", *OTHERS, "crd+kd", "cktf", "cktf+kd"]
METHODS += [f"cktf+{name}" for name in OTHERS]


def options_of(method: str, choice: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of those of a method's terms that contrast."""
    terms = method.split("+")
    return {name: CONTRAST | choice for name in ("crd", "cktf") if name in terms}


# Method string and options of each cell, by name.
ALL = {method: (method, options_of(method, {})) for method in METHODS} | {
    f"{method} {choice}": (method, options_of(method, options))
    for choice, options in CHOICES.items()
    for method in ("cktf", "cktf+kd")
}


class Cell(NamedTuple):
    """One student with one seed."""

    name: str
    seed: int

    @property
    def slug(self) -> str:
        """Its name, for files."""
        return f"{self.name.replace(' ', '-').replace(':', '=')}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """Where its result is kept."""
        return CELLS / f"{self.slug}.json"

    def take(self, out: Path) -> bool:
        """Whether it is to be done, and no other process that lives has it."""
        if self.result.exists():
            return False
        (out / self.slug).mkdir(parents=True, exist_ok=True)
        lock = (out / self.slug / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        _LOCKS.append(lock)
        return True

    def recipe(self, data_dir: str) -> DistillRecipe:
        """How it is trained."""
        method, options = ALL[self.name]
        fields = {
            "kind": "distill", "teacher": str(RESULTS / f"cifar10-{TEACHER}.safetensors"),
            "student": STUDENT, "method": method, "options": options, "epochs": EPOCHS,
            "seed": self.seed, "data": {"name": "cifar10", "dir": data_dir},
            # Named, so that every cell has the same one whatever machine it is trained on.
            "runtime": {"precision": "bfloat16"},
        }  # fmt: skip
        recipe = make_recipe(fields)
        assert isinstance(recipe, DistillRecipe)
        return recipe


# Held as long as the process lives.
_LOCKS: list[TextIO] = []


def train(cells: list[Cell], data_dir: str, out: Path, together: int) -> None:
    """Train cells that are not done, so many at a time from one pass of the teacher."""
    for seed in sorted({cell.seed for cell in cells}):
        waiting = [cell for cell in cells if cell.seed == seed]
        while waiting:
            group: list[Cell] = []
            while waiting and len(group) < together:
                cell = waiting.pop(0)
                if cell.take(out):
                    group.append(cell)
            if group:
                print("together:" if len(group) > 1 else "alone:", *group, flush=True)
                runs = distill_together([(c.recipe(data_dir), out / c.slug) for c in group])
                for cell, run in zip(group, runs, strict=True):
                    keep_cell(cell, run.summary, len(group))


def keep_cell(cell: Cell, summary: Mapping[str, Any], together: int) -> None:
    """Write a cell's result."""
    CELLS.mkdir(parents=True, exist_ok=True)
    record = {"cell": cell.name, "options": ALL[cell.name][1], "together": together, **summary}
    cell.result.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{cell.slug}: {summary['test_top1']:.2f} %", flush=True)


def results() -> str:
    """All cells that are done: mean and spread over their seeds."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(CELLS.glob("*.json")):
        cell = json.loads(path.read_text())
        found[cell["cell"]].append(cell)
    rows = []
    for name in (n for n in ALL if n in found):
        top1 = [cell["test_top1"] for cell in found[name]]
        spread = f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "-"
        # Of students that take turns, one has the teacher's time and the others do not.
        alone = [c["images_per_second"] for c in found[name] if c.get("together", 1) == 1]
        speed = f"{statistics.median(alone):.0f}" if alone else "-"
        rows.append([name, f"{statistics.mean(top1):.2f}", spread, len(top1), speed])
    return table(["cell", "top-1 %", "± (one sd)", "seeds", "images/s"], rows)


def main() -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--cells", nargs="*", choices=ALL, default=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(ALL))
        return
    if not args.table:
        if args.data_dir is None:
            parser.error("--data-dir names the folder that holds CIFAR-10")
        cells = [Cell(name, seed) for seed in args.seeds for name in args.cells]
        train(cells, args.data_dir, args.out, args.together)
    teacher = json.loads((RESULTS / f"cifar10-{TEACHER}.json").read_text())
    print(f"teacher {TEACHER}: {teacher['test_top1']:.2f} %; student {STUDENT}, {EPOCHS} epochs")
    print(results())


if __name__ == "__main__":
    main()
