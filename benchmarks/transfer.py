"""Transfer without labels: students of one teacher on unlabelled images, then linear probes.

    python benchmarks/transfer.py --data-dir DIR [--cells inside/kd …] [--seeds 0 1 2]
    python benchmarks/transfer.py --list
    python benchmarks/transfer.py --table

`inside`: teacher wrn_16_2 of six classes of CIFAR-10; student resnet8 on the 20,000 training images
of the other four, whose labels are not read; probes on up to 500 labels a class, test 4,000 images.

A cell is one network with one seed; each leaves results/transfer/CELL-seedS.json when it is done,
and is not computed again. Cells of one seed take turns with one pass of their teacher. All networks
compute in bfloat16. Stop and continue freely.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

import cktf
from cktf.data import load_dataset
from cktf.data.cifar_names import CIFAR10
from cktf.recipes import DistillRecipe, load_teacher, make_recipe
from cktf.workflows import Probed, distill_together, prepare, run_recipe

RESULTS = Path(__file__).parents[1] / "results" / "transfer"
RUNTIME = {"precision": "bfloat16"}
CONTRAST: dict[str, Any] = {"negatives": 4096, "estimator": "shared", "temperature": 0.07}
CURVE, DRAWS = (1, 5, 20, 100, 500), 5
MOST_STUDENTS = 4
REFERENCES = ("teacher", "floor", "scratch")


@dataclass(frozen=True)
class Study:
    """One source and one target.

    Attributes:
        teacher: what it is: the name of its recipe's model.
        student: a network of the library.
        target: classes of the images without labels.
        source: classes of the teacher.
        epochs: passes over the unlabelled images.
        methods: with three seeds, and with one.
    """

    teacher: str
    student: str
    epochs: int
    target: tuple[str, ...]
    source: tuple[str, ...]
    teacher_epochs: int
    methods: dict[str, int] = field(default_factory=dict)


# Those with one seed take 1; FSP needs networks of equal widths, AB only initialises.
_ONE = ("cktf+kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ft", "nst", "kdsvd")
STUDIES = {
    "inside": Study(
        "wrn_16_2", "resnet8", 6, CIFAR10[6:], CIFAR10[:6], 12,
        dict.fromkeys(("kd", "crd", "cktf"), 3) | dict.fromkeys(_ONE, 1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One network with one seed."""

    study: str
    name: str
    seed: int

    @property
    def slug(self) -> str:
        """Its name, for files."""
        return f"{self.study}-{self.name}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """Where its result is kept."""
        return RESULTS / f"{self.slug}.json"

    def keep(self, probed: dict[str, Any], **more: Any) -> None:
        """Write what it came to."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        study = STUDIES[self.study]
        record = {
            "study": self.study, "cell": self.name, "seed": self.seed, "teacher": study.teacher,
            "student": study.student, "epochs": study.epochs, **RUNTIME, **more, **probed,
        }  # fmt: skip
        partial = self.result.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(self.result)
        print(f"{self.slug}: {record['top1']:.2f} %", flush=True)


class Work:
    """Images and teacher of a study, and where its runs go."""

    def __init__(self, name: str, data_dir: Path, out: Path) -> None:
        self.name, self.study = name, STUDIES[name]
        self.data_dir, self.out = data_dir, out / name
        splits = [load_dataset("cifar10", data_dir, split) for split in ("train", "test")]
        self.train, self.test = (data.of_classes(self.study.target) for data in splits)

    def data(self, classes: Sequence[str], **more: Any) -> dict[str, Any]:
        """The section of a recipe."""
        return {"name": "cifar10", "dir": str(self.data_dir), "classes": list(classes), **more}

    def teacher(self) -> Path:
        """The folder of the trained teacher."""
        fields = {
            "kind": "train", "model": self.study.teacher, "epochs": self.study.teacher_epochs,
            "data": self.data(self.study.source), "runtime": RUNTIME,
        }  # fmt: skip
        return run_recipe(make_recipe(fields), self.out / "teacher", resume=True).folder

    def probed(self, network: nn.Module, seed: int) -> dict[str, Any]:
        """The label curve of a network's features."""
        found: Probed = cktf.probe(
            network, labeled=self.train, test=self.test, labels_per_class=CURVE, draws=DRAWS,
            seed=seed, runtime=RUNTIME,
        )  # fmt: skip
        return {"top1": found.final, "points": found.points()}

    def refer(self, cell: Cell) -> None:
        """A reference: the teacher itself, an untrained student, or one on labels alone."""
        if cell.name == "scratch":
            self.scratch(cell)
            return
        if cell.name == "teacher":
            network = load_teacher(str(self.teacher()), None).network
        else:
            # As every student begins.
            network = prepare(self.recipe(replace(cell, name="kd")), self.out / cell.slug)[
                1
            ].student
        cell.keep(self.probed(network, cell.seed))

    def scratch(self, cell: Cell) -> None:
        """Trained on the most labels of the curve, for as many steps as the transfer."""
        labels = max(CURVE)
        epochs = round(self.study.epochs * len(self.train) / (labels * len(self.study.target)))
        fields = {
            "kind": "train", "model": self.study.student, "epochs": epochs, "seed": cell.seed,
            "data": self.data(self.study.target, per_class=labels), "runtime": RUNTIME,
        }  # fmt: skip
        run = run_recipe(make_recipe(fields), self.out / cell.slug, resume=True)
        cell.keep({"top1": run.summary["test_top1"], "points": []}, scratch_epochs=epochs)

    def recipe(self, cell: Cell) -> DistillRecipe:
        """How a student is trained."""
        options = {n: CONTRAST for n in ("crd", "cktf") if n in cell.name.split("+")}
        fields = {
            "kind": "distill", "teacher": str(self.teacher()), "student": self.study.student,
            "method": cell.name, "options": options, "epochs": self.study.epochs,
            "seed": cell.seed, "data": self.data(self.study.target, labels=False),
            "runtime": RUNTIME,
        }  # fmt: skip
        recipe = make_recipe(fields)
        assert isinstance(recipe, DistillRecipe)
        return recipe

    def students(self, cells: Sequence[Cell]) -> None:
        """Train students in turn, and probe them."""
        runs = distill_together([(self.recipe(c), self.out / c.slug) for c in cells])
        for cell, run in zip(cells, runs, strict=True):
            kept = {k: run.summary[k] for k in ("method", "images_per_second", "seconds", "device")}
            cell.keep(
                self.probed(run.student, cell.seed), together=len(cells), options=CONTRAST, **kept
            )


def cells_of(study: str, seeds: Sequence[int]) -> list[Cell]:
    """Everything of a study, the references first."""
    methods = dict.fromkeys(REFERENCES, 3) | STUDIES[study].methods
    return [Cell(study, n, s) for s in seeds for n, count in methods.items() if s < count]


def carry_out(work: Work, cells: Sequence[Cell]) -> None:
    """Do what is not done, students of a seed together, the references last."""
    waiting = [cell for cell in cells if not cell.result.exists()]
    students = [cell for cell in waiting if cell.name not in REFERENCES]
    while students:
        group = [c for c in students if c.seed == students[0].seed][:MOST_STUDENTS]
        work.students(group)
        students = [c for c in students if c not in group]
    for cell in waiting:
        if cell.name in REFERENCES:
            work.refer(cell)


def main() -> None:
    """Parse, do what is missing, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--cells", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = {
        study: [c for c in cells_of(study, args.seeds) if not args.cells or c.name in args.cells]
        for study in args.studies
    }
    if args.list:
        print("\n".join(cell.slug for cells in chosen.values() for cell in cells))
        return
    if args.data_dir is None:
        parser.error("--data-dir names the folder that holds CIFAR-10")
    for study, cells in chosen.items():
        carry_out(Work(study, args.data_dir, args.out), cells)


if __name__ == "__main__":
    main()
