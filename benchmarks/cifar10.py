"""Compare methods on CIFAR-10 in the hours that two CPU cores take; can be stopped and continued.

    python benchmarks/cifar10.py --data-dir DIR [--out runs/cifar10] [--methods ce kd crd …]

Teacher wrn_16_2, 12 epochs; student resnet8, 8 epochs; onecycle, one seed. Finished cells are read,
unfinished ones are continued. Prints a table and writes the cells' summaries to
results/cifar10-wrn_16_2-resnet8.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cktf

TEACHER, STUDENT = "wrn_16_2", "resnet8"
METHODS = ("ce", "kd", "crd", "cktf", "cktf+kd")
CONTRAST = {"negatives": 4096, "storage": "bfloat16"}
RESULTS = Path(__file__).parents[1] / "results" / f"cifar10-{TEACHER}-{STUDENT}.json"


def cell(out: Path, method: str, data_dir: str, seed: int) -> None:
    """Train one student, or continue it."""
    cktf.distill(
        out / "teacher",
        STUDENT,
        train="cifar10",
        method=method,
        epochs=8,
        seed=seed,
        out=out / f"{method}-seed{seed}",
        options={name: CONTRAST for name in ("crd", "cktf") if name in method},
        overrides={"data.dir": data_dir},
        resume=True,
    )


def summaries(out: Path) -> list[dict[str, Any]]:
    """The summaries of all finished runs, the teacher's first."""
    found = [json.loads(p.read_text()) for p in sorted(out.glob("*/summary.json"))]
    return sorted(found, key=lambda s: (s["teacher"] is not None, s["test_top1"]))


def main() -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cktf.teach(
        TEACHER,
        train="cifar10",
        epochs=12,
        out=args.out / "teacher",
        overrides={"data.dir": args.data_dir},
        resume=True,
    )
    for method in args.methods:
        cell(args.out, method, args.data_dir, args.seed)
    rows = summaries(args.out)
    RESULTS.parent.mkdir(exist_ok=True)
    contrast = ", ".join(f"{name} {value}" for name, value in CONTRAST.items())
    record = {"conditions": f"CRD and CKTF: {contrast}", "runs": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'network':10} {'method':9} {'seed':>4} {'epochs':>6} {'top-1 %':>8} {'images/s':>9}")
    for row in rows:
        print(
            f"{row['student']:10} {row['method']:9} {row['seed']:4} {row['epochs']:6} "
            f"{row['test_top1']:8.2f} {row['images_per_second']:9.0f}"
        )
    print(
        f"one standard error of a top-1: {max(r['test_standard_error'] for r in rows):.2f} points"
    )


if __name__ == "__main__":
    main()
