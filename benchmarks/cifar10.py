"""Compare methods, and choices of the contrastive engine, on CIFAR-10; stop and continue freely.

    python benchmarks/cifar10.py --data-dir DIR [--cells cktf "cktf queue" …] [--seeds 0 1 2]
    python benchmarks/cifar10.py --list
    python benchmarks/cifar10.py --table

Teacher wrn_16_2, 12 epochs, its weights in results/; student resnet8, 8 epochs, onecycle. A cell is
one student with one seed; each leaves results/cifar10/CELL-seedS.json when it is done, and is then
not trained again. `--table` prints what there is.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from measure import table

import cktf

TEACHER, STUDENT, EPOCHS = "wrn_16_2", "resnet8", 8
RESULTS = Path(__file__).parents[1] / "results"
CELLS = RESULTS / "cifar10"
# Fewer negatives than the paper's 16384, for the time of those that draw them for each anchor.
CONTRAST: dict[str, Any] = {"negatives": 4096}
CHOICES: dict[str, dict[str, Any]] = {
    "": {},
    "all": {"estimator": "all"},
    "shared": {"estimator": "shared"},
    "queue": {"memory": "queue", "queue_size": 16384},
    "batch": {"memory": "batch"},
    "infonce all": {"estimator": "all", "critic": "infonce"},
    "infonce queue": {"memory": "queue", "queue_size": 16384, "critic": "infonce"},
    "infonce batch": {"memory": "batch", "critic": "infonce"},
    "forward": {"init": "forward"},
    "all forward": {"estimator": "all", "init": "forward"},
    "renormalized": {"renormalize": (2, 4)},
    "bfloat16": {"storage": "bfloat16"},
    "no norm": {"module_norm": "none"},
    "sample norm": {"module_norm": "sample"},
    "smallest": {"match": "smallest"},
}
# Method string and options of each cell, by name.
ALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ce": ("ce", {}),
    "kd": ("kd", {}),
    "crd": ("crd", {"crd": CONTRAST}),
} | {
    f"{method} {choice}".strip(): (method, {"cktf": CONTRAST | options})
    for choice, options in CHOICES.items()
    for method in ("cktf", "cktf+kd")
}


def train(name: str, seed: int, data_dir: str, out: Path) -> None:
    """Train one student, or continue it, unless its result is there."""
    slug = f"{name.replace(' ', '-')}-seed{seed}"
    result = CELLS / f"{slug}.json"
    if result.exists():
        return
    method, options = ALL[name]
    run = cktf.distill(
        RESULTS / f"cifar10-{TEACHER}.safetensors",
        STUDENT,
        train="cifar10",
        method=method,
        epochs=EPOCHS,
        seed=seed,
        out=out / slug,
        options=options,
        overrides={"data.dir": data_dir},
        resume=True,
    )
    CELLS.mkdir(parents=True, exist_ok=True)
    record = {"cell": name, "options": options, **run.summary}
    result.write_text(json.dumps(record, indent=1) + "\n")


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
        speed = statistics.median(cell["images_per_second"] for cell in found[name])
        rows.append([name, f"{statistics.mean(top1):.2f}", spread, len(top1), f"{speed:.0f}"])
    return table(["cell", "top-1 %", "± (one sd)", "seeds", "images/s"], rows)


def main() -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--cells", nargs="*", choices=ALL, default=list(ALL)[:5])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(ALL))
        return
    if not args.table:
        if args.data_dir is None:
            parser.error("--data-dir names the folder that holds CIFAR-10")
        for seed in args.seeds:
            for name in args.cells:
                train(name, seed, args.data_dir, args.out)
    teacher = json.loads((RESULTS / f"cifar10-{TEACHER}.json").read_text())
    print(f"teacher {TEACHER}: {teacher['test_top1']:.2f} %; student {STUDENT}, {EPOCHS} epochs")
    print(results())


if __name__ == "__main__":
    main()
