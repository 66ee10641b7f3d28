"""A matrix with its folder: which cells there are, in which groups, and what is there of them."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from zlib import crc32

from cktf.bench.cells import Cell, TeacherPlan
from cktf.bench.matrix import Matrix
from cktf.bench.results import canonical, completed, differing, read_result, result_key, weights_of
from cktf.engine import RunFolder
from cktf.errors import RunFolderError
from cktf.recipes import TransferRecipe, parse_recipe, read_recipe, result_fields
from cktf.workflows import SHARED

Group = list[Cell]


@dataclass
class Bench:
    """A matrix, its folder, and how it is carried out.

    Attributes:
        matrix: what is compared.
        cells: all of its cells, or those that were chosen.
        out: the folder.
        results: where results are kept; by default in `out`.
        together: so many students at most take turns.
        shard: which share of the cells is done here: number from 1, and of how many.
        reuse: folders with finished runs or results that are taken over.
        trust_code: whether code that weights name may run.
        show: whether lines are printed.
    """

    matrix: Matrix
    cells: list[Cell]
    out: Path
    results: Path
    together: int = 1
    shard: tuple[int, int] = (1, 1)
    reuse: list[Path] = field(default_factory=list)
    trust_code: bool = False
    show: bool = True
    started: float = field(default_factory=time.time)

    def groups(self) -> list[Group]:
        """Cells of this shard, in groups that can take turns with one teacher.

        They are drawn from the whole matrix, so that shards never overlap, nor fall together with
        methods or seeds: they may be machines of several kinds.
        """
        alike: dict[str, list[Group]] = {}
        for cell in self.cells:
            groups = alike.setdefault(_alike(cell), [[]])
            if len(groups[-1]) == self.together:
                groups.append([])
            groups[-1].append(cell)
        whole, (number, of) = [group for groups in alike.values() for group in groups], self.shard
        drawn = sorted(range(len(whole)), key=lambda i: crc32(whole[i][0].slug.encode()))
        return [whole[i] for i in sorted(drawn[number - 1 :: of])]

    def result_file(self, cell: Cell) -> Path:
        """Where a cell's result is kept."""
        return self.results / f"{cell.slug}.json"

    def done(self, cell: Cell) -> bool:
        """Whether a cell has a result that can be read."""
        return read_result(self.result_file(cell)) is not None

    def teacher_file(self, teacher: TeacherPlan) -> Path:
        """Where it is kept what the teacher was."""
        return self.results / f"{teacher.slug}.json"

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.out / "cells" / cell.slug

    def failure(self, slug: str) -> Path:
        """Where the error of what failed is kept."""
        return self.out / "failures" / f"{slug}.txt"


def _alike(cell: Cell) -> str:
    """The same for cells whose students see the same batches and teacher."""
    recipe = cell.recipe()
    if isinstance(recipe, TransferRecipe):
        return cell.slug
    seen = recipe.model_dump(mode="json", include=set(SHARED))
    return json.dumps([cell.teacher.slug, seen], sort_keys=True)


def check_bench(bench: Bench) -> None:
    """See that what is there is of the same recipes; write nothing.

    Raises:
        RunFolderError: results or teachers of other recipes, or a teacher that is not there.
    """
    for folder in bench.reuse:
        if not folder.is_dir():
            raise RunFolderError(f"--reuse {folder}: there is no such folder.")
    _refuse(bench.results, "results", _changed_results(bench))
    _refuse(bench.out / "teachers", "teachers", _changed_teachers(bench))
    for cell in bench.cells:
        plan, kept = cell.teacher, bench.teacher_file(cell.teacher)
        here = plan.weights or RunFolder(bench.out / "teachers" / plan.slug).finished
        if not here and kept.exists() and not bench.done(cell):
            raise RunFolderError(
                f"{kept} is of a teacher that {bench.out} has not, and one that is trained again "
                f"has other weights. Give that one with --teacher {plan.name}=FILE, or choose "
                "other --results."
            )


def _changed_results(bench: Bench) -> Iterator[str]:
    for cell in bench.cells:
        result = read_result(bench.result_file(cell))
        if result is not None:
            now = result_key(cell.recipe(), "") | {"teacher": result.recipe["teacher"]}
            if fields := ", ".join(differing(completed(result.recipe), now)):
                yield f"{cell.slug}: {fields}"


def _changed_teachers(bench: Bench) -> Iterator[str]:
    for teacher in {cell.teacher.slug: cell.teacher for cell in bench.cells}.values():
        run = RunFolder(bench.out / "teachers" / teacher.slug)
        if teacher.weights is None and run.finished:
            before = result_fields(parse_recipe(read_recipe(run.recipe)))
            if fields := ", ".join(differing(before, result_fields(teacher.recipe))):
                yield f"{teacher.slug}: {fields}"
        elif (kept := bench.teacher_file(teacher)).exists():
            record = json.loads(kept.read_text())
            if teacher.weights is not None:
                if record["weights"] != f"sha256 {weights_of(teacher.weights)}":
                    yield f"{teacher.slug}: its weights"
            elif record["recipe"] is not None:
                now = canonical(result_fields(teacher.recipe))
                if fields := ", ".join(differing(record["recipe"], now)):
                    yield f"{teacher.slug}: {fields}"


def _refuse(place: Path, what: str, changed: Iterator[str]) -> None:
    lines = [f"  - {line}" for line in islice(changed, 10)]
    if lines:
        raise RunFolderError(
            f"{place} holds {what} of other recipes than the matrix's; they differ in\n"
            + "\n".join(lines)
            + "\nChoose another --out, or move them away."
        )
