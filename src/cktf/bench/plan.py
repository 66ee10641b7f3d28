"""A matrix with its folder: its groups of cells, its files, and what makes them unusable."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from zlib import crc32

from cktf.bench.cells import Cell, TeacherPlan
from cktf.bench.matrix import Matrix
from cktf.bench.results import (
    COSTS,
    FAILURES,
    LOCK,
    MATRIX,
    RESULTS,
    differing_fields,
    fill_defaults,
    read_result,
    result_key,
    to_plain,
    weights_fingerprint,
)
from cktf.engine import RunFolder, check_output_folder
from cktf.errors import RunFolderError
from cktf.recipes import DistillRecipe, read_recipe, result_fields
from cktf.workflows import SHARED

Group = list[Cell]


@dataclass
class Bench:
    """A matrix, its folder, and how it is carried out.

    Attributes:
        matrix: the comparison.
        cells: all of its cells, or a selection.
        out: the folder.
        results: folder of the results; by default in `out`.
        interleaved: number of students at most that share one pass of their teacher.
        shard: share of the cells that is trained here: number from 1, and number of shares.
        reuse: folders with finished runs or results that are taken over.
        trust_code: run code that weights name.
        show: print progress.
        started: time from which failures count.
    """

    matrix: Matrix
    cells: list[Cell]
    out: Path
    results: Path
    interleaved: int = 1
    shard: tuple[int, int] = (1, 1)
    reuse: list[Path] = field(default_factory=list)
    trust_code: bool = False
    show: bool = True
    started: float = field(default_factory=time.time)

    def groups(self) -> list[Group]:
        """Cells of this shard, in groups that can share one pass of a teacher.

        Groups are drawn by hash from the whole matrix: shards never overlap, and each has cells of
        all methods and seeds, since shards may run on machines of several kinds.
        """
        by_teacher: dict[str, list[Group]] = {}
        for cell in self.cells:
            recipe, key = cell.recipe(), cell.slug
            if isinstance(recipe, DistillRecipe):
                # Students that see the same batches and teacher.
                shared = recipe.model_dump(mode="json", include=set(SHARED))
                key = json.dumps([cell.teacher.slug, shared], sort_keys=True)
            groups = by_teacher.setdefault(key, [[]])
            if len(groups[-1]) == self.interleaved:
                groups.append([])
            groups[-1].append(cell)
        every = [group for groups in by_teacher.values() for group in groups]
        order = sorted(range(len(every)), key=lambda i: crc32(every[i][0].slug.encode()))
        number, shards = self.shard
        return [every[i] for i in sorted(order[number - 1 :: shards])]

    def result_file(self, subject: Cell | TeacherPlan) -> Path:
        """File of a cell's result, or of a teacher's record."""
        return self.results / f"{subject.slug}.json"

    def is_done(self, cell: Cell) -> bool:
        """Whether a cell has a result that can be read."""
        return read_result(self.result_file(cell)) is not None

    def run_dir(self, cell: Cell) -> Path:
        """Run folder of a cell."""
        return self.out / "cells" / cell.slug

    def teacher_dir(self, teacher: TeacherPlan) -> Path:
        """Run folder of a teacher that is trained here."""
        return self.out / "teachers" / teacher.slug

    def failure_file(self, slug: str) -> Path:
        """File of the error of a cell or teacher that failed."""
        return self.out / FAILURES / f"{slug}.txt"


def check_bench(bench: Bench) -> None:
    """Check that existing results and teachers are of the same recipes; write nothing.

    Raises:
        RunFolderError: folders with other files than a matrix's, results or teachers of other
            recipes, or a teacher that is missing.
    """
    for folder in (bench.out, bench.results):
        begun = (folder / "locks").is_dir() or (folder / LOCK).exists()
        if not begun and not any(map(read_result, folder.glob("*.json"))):
            # Another process may begin at this moment.
            own = ("locks", "teachers", "cells", FAILURES, RESULTS, MATRIX, COSTS, LOCK)
            check_output_folder(folder, own)
    for folder in bench.reuse:
        if not folder.is_dir():
            raise RunFolderError(f"--reuse {folder}: there is no such folder.")
    for folder, kind, changed in (
        (bench.results, "results", _changed_results(bench)),
        (bench.out / "teachers", "teachers", _changed_teachers(bench)),
    ):
        if lines := [f"  - {line}\n" for line in islice(changed, 10)]:
            raise RunFolderError(
                f"{folder} holds {kind} of other recipes than the matrix's; they differ in\n"
                f"{''.join(lines)}Choose another --out, or move them away."
            )
    for cell in bench.cells:
        teacher, record = cell.teacher, bench.result_file(cell.teacher)
        is_here = teacher.weights or RunFolder(bench.teacher_dir(teacher)).finished
        if not is_here and record.exists() and not bench.is_done(cell):
            raise RunFolderError(
                f"{record} is of a teacher that {bench.out} has not, and one that is trained again "
                f"has other weights. Give that one with --teacher {teacher.name}=FILE, or choose "
                "other --results."
            )


def _changed_results(bench: Bench) -> Iterator[str]:
    for cell in bench.cells:
        result = read_result(bench.result_file(cell))
        if result is not None:
            now = result_key(cell.recipe(), "") | {"teacher": result.recipe["teacher"]}
            if fields := differing_fields(fill_defaults(result.recipe), now):
                yield f"{cell.slug}: {fields}"


def _changed_teachers(bench: Bench) -> Iterator[str]:
    for teacher in {cell.teacher.slug: cell.teacher for cell in bench.cells}.values():
        run, file = RunFolder(bench.teacher_dir(teacher)), bench.result_file(teacher)
        now = to_plain(result_fields(teacher.recipe))
        fields = ""
        if teacher.weights is None and run.finished:
            fields = differing_fields(fill_defaults(read_recipe(run.recipe)), now)
        elif file.exists():
            record = json.loads(file.read_text())
            if teacher.weights is not None:
                sha = f"sha256 {weights_fingerprint(teacher.weights)}"
                fields = "its weights" * (record["weights"] != sha)
            elif record["recipe"] is not None:
                fields = differing_fields(fill_defaults(record["recipe"]), now)
        if fields:
            yield f"{teacher.slug}: {fields}"
