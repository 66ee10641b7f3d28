"""Transfer without labels: students of one teacher on unlabeled images, then linear probes.

    python benchmarks/transfer.py --data-dir DIR [--studies inside …] [--cells kd …] [--seeds 0 1 2]
    python benchmarks/transfer.py --list

`inside`: teacher wrn_16_2 of six classes of CIFAR-10; student resnet8 on the 20,000 training images
of the other four, whose labels are not read; probes on up to 500 labels a class, test 4,000 images.
`imagenet-resnet20`, `imagenet-MobileNetV2`: the teacher is EfficientNet-Lite0 of ImageNet, which
sees 96 pixels; the students see all 50,000 training images of CIFAR-10 at 32, without labels; its
outputs for four views of each image are kept on disk. `kd new views` is kd without that.

A cell is one network with one seed; each leaves results/transfer/STUDY-CELL-seedS.json when it is
done, and is not computed again. Students of one seed take turns with one pass of their teacher. All
networks compute in bfloat16. Stop and continue freely. `transfer_page.py` makes the tables and the
plots of docs/transfer.md.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transfer_page import RESULTS

import cktf
from cktf.data import load_dataset, sample_per_class
from cktf.data.cifar_classes import CIFAR10
from cktf.recipes import DistillRecipe, load_teacher, parse_recipe
from cktf.workflows import ProbeResult, distill_interleaved, prepare, run_recipe

RUNTIME = {"precision": "bfloat16"}
CONTRAST: dict[str, Any] = {"negatives": 4096, "estimator": "shared", "temperature": 0.07}
CURVE = (1, 5, 20, 100, 500)
MOST_STUDENTS = 4
REFERENCES = ("teacher", "floor", "scratch")
LITE0 = f"{Path(__file__).parent / 'lite0.py'}:lite0"
NEW_VIEWS = " new views"
# Of CKTF without labels: the paper's transfer.
PUBLISHED_WEIGHTS = {"beta": 1.0, "theta": 0.04}


@dataclass(frozen=True)
class Study:
    """One source and one target.

    Attributes:
        teacher: a network of the library, which is trained on `source`; or a line of one that is.
        student: a network of the library.
        epochs: passes over the unlabeled images.
        target: classes of the images without labels.
        source: classes of the teacher, if it is to be trained.
        methods: each with how many seeds it has.
        references: seeds of what the students are compared with.
        pool: images of each class that labels are drawn from.
        draws: of labels, at each point of the curve.
        views: of each image, whose teacher's outputs are kept on disk; 0 for new ones.
        cktf: options of CKTF beside those of all contrast.
    """

    teacher: str
    student: str
    epochs: int
    target: tuple[str, ...]
    methods: dict[str, int]
    source: tuple[str, ...] = ()
    references: int = 1
    pool: int = 5000
    draws: int = 5
    views: int = 0
    cktf: dict[str, Any] = field(default_factory=dict)


# Those with one seed take 1; FSP needs networks of equal widths, AB only initializes.
_ONE = ("cktf+kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "ft", "nst", "kdsvd")
_IMAGENET = Study(
    LITE0, "resnet20", 6, CIFAR10, {"cktf": 1, "crd": 1, "kd": 1, f"kd{NEW_VIEWS}": 1},
    pool=1000, draws=3, views=4, cktf={"module_norm": "none"},
)  # fmt: skip
STUDIES = {
    "inside": Study(
        "wrn_16_2", "resnet8", 6, CIFAR10[6:],
        dict.fromkeys(("kd", "crd", "cktf"), 3) | dict.fromkeys(_ONE, 1),
        source=CIFAR10[:6], references=3,
    ),
    "imagenet-resnet20": _IMAGENET,
    "imagenet-MobileNetV2": replace(
        _IMAGENET, student="MobileNetV2", methods={"cktf": 1, "crd": 1, "kd": 1}
    ),
}  # fmt: skip
_TEACHER_EPOCHS = 12


@dataclass(frozen=True)
class Cell:
    """One network with one seed."""

    study: str
    name: str
    seed: int

    @property
    def slug(self) -> str:
        """Its name, for files."""
        return f"{self.study}-{self.name.replace(' ', '-')}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """Where its result is kept."""
        return RESULTS / f"{self.slug}.json"

    def keep(self, probed: dict[str, Any], **more: Any) -> None:
        """Write what it came to."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        study = STUDIES[self.study]
        record = {
            "study": self.study, "cell": self.name, "seed": self.seed,
            "teacher": study.teacher.rpartition(":")[2], "student": study.student,
            "epochs": study.epochs, **RUNTIME, **more, **probed,
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
        self.train, self.test = (data.select_classes(self.study.target) for data in splits)
        self.pool = self.train.subset(sample_per_class(self.train.labels, self.study.pool, 0))

    def data(self, classes: Sequence[str], **more: Any) -> dict[str, Any]:
        """The section of a recipe."""
        return {"name": "cifar10", "dir": str(self.data_dir), "classes": list(classes), **more}

    def teacher(self) -> str:
        """The teacher, trained if it is not."""
        if not self.study.source:
            return self.study.teacher
        fields = {
            "kind": "train", "model": self.study.teacher, "epochs": _TEACHER_EPOCHS,
            "data": self.data(self.study.source), "runtime": RUNTIME,
        }  # fmt: skip
        return str(run_recipe(parse_recipe(fields), self.out / "teacher", resume=True).folder)

    def probed(self, network: nn.Module, seed: int) -> dict[str, Any]:
        """The label curve of a network's features."""
        found: ProbeResult = cktf.probe(
            network, labeled=self.pool, test=self.test, labels_per_class=CURVE,
            draws=self.study.draws, seed=seed, runtime=RUNTIME,
        )  # fmt: skip
        return {"top1": found.final, "points": found.points()}

    def refer(self, cell: Cell) -> None:
        """A reference: the teacher itself, an untrained student, or one on labels alone."""
        if cell.name == "scratch":
            self.scratch(cell)
            return
        if cell.name == "teacher":
            network = load_teacher(self.teacher(), None).network
        else:
            # As every student begins.
            begun = prepare(self.recipe(replace(cell, name="kd")), self.out / cell.slug)
            network = begun[1].student
        cell.keep(self.probed(network, cell.seed))

    def scratch(self, cell: Cell) -> None:
        """Trained on the most labels of the curve, for as many steps as the transfer."""
        labels = max(CURVE)
        epochs = round(self.study.epochs * len(self.train) / (labels * len(self.study.target)))
        fields = {
            "kind": "train", "model": self.study.student, "epochs": epochs, "seed": cell.seed,
            "data": self.data(self.study.target, per_class=labels), "runtime": RUNTIME,
        }  # fmt: skip
        run = run_recipe(parse_recipe(fields), self.out / cell.slug, resume=True)
        cell.keep({"top1": run.summary["test_top1"], "points": []}, scratch_epochs=epochs)

    def options(self, method: str) -> dict[str, dict[str, Any]]:
        """Those of a method's terms that contrast."""
        own = {"crd": CONTRAST, "cktf": CONTRAST | PUBLISHED_WEIGHTS | self.study.cktf}
        return {name: given for name, given in own.items() if name in method.split("+")}

    def recipe(self, cell: Cell) -> DistillRecipe:
        """How a student is trained."""
        method = cell.name.removesuffix(NEW_VIEWS)
        kept = self.study.views and method == cell.name
        data = self.data(self.study.target, labels=False, views=self.study.views if kept else 0)
        fields = {
            "kind": "distill", "teacher": self.teacher(), "student": self.study.student,
            "method": method, "options": self.options(method), "epochs": self.study.epochs,
            "seed": cell.seed, "data": data, "runtime": RUNTIME,
            "teacher_cache": str(self.out.parent / "teacher-cache") if kept else None,
        }  # fmt: skip
        recipe = parse_recipe(fields)
        assert isinstance(recipe, DistillRecipe)
        return recipe

    def students(self, cells: Sequence[Cell]) -> None:
        """Train students in turn, and probe them."""
        runs = distill_interleaved([(self.recipe(c), self.out / c.slug) for c in cells])
        for cell, run in zip(cells, runs, strict=True):
            kept = {k: run.summary[k] for k in ("method", "images_per_second", "seconds", "device")}
            more = {
                "together": len(cells), "options": self.options(run.summary["method"]),
                "views": self.recipe(cell).data.views,
            }  # fmt: skip
            cell.keep(self.probed(run.student, cell.seed), **more, **kept)


def cells_of(study: str, seeds: Sequence[int]) -> list[Cell]:
    """Everything of a study, the references first."""
    counts = dict.fromkeys(REFERENCES, STUDIES[study].references) | STUDIES[study].methods
    return [Cell(study, n, s) for s in seeds for n, count in counts.items() if s < count]


def carry_out(work: Work, cells: Sequence[Cell]) -> None:
    """Do what is not done: students of a seed on the same images together, then references."""
    waiting = [cell for cell in cells if not cell.result.exists()]
    students = [cell for cell in waiting if cell.name not in REFERENCES]
    while students:
        like = (students[0].seed, students[0].name.endswith(NEW_VIEWS))
        group = [c for c in students if (c.seed, c.name.endswith(NEW_VIEWS)) == like]
        group = group[:MOST_STUDENTS]
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
    elif args.data_dir is None:
        parser.error("--data-dir names the folder that holds CIFAR-10")
    else:
        for study, cells in chosen.items():
            carry_out(Work(study, args.data_dir, args.out), cells)


if __name__ == "__main__":
    main()
