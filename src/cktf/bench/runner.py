"""Carry out a matrix: any number of processes on one folder, stopped and continued at any time.

OUT/teachers/…   a run folder for each teacher, trained once
OUT/cells/…      a run folder for each cell
OUT/results/…    what is kept: a small file for each cell, and the matrix
OUT/failures/…   the error of each cell that failed
OUT/locks/…      which process has what; the system frees a lock when its process ends
"""

import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from cktf.bench.cells import Cell, TeacherPlan, with_weights
from cktf.bench.jobs import work_together
from cktf.bench.plan import Bench, Group, check_bench
from cktf.bench.results import (
    Result,
    Reusable,
    keep_matrix,
    keep_teacher,
    result_of,
    teacher_record,
    weights_of,
)
from cktf.engine import RunFolder, announce
from cktf.errors import CktfError, Interrupted, RunFolderError
from cktf.files import write_atomically
from cktf.locks import file_lock
from cktf.recipes import DistillRecipe, TransferRecipe
from cktf.workflows import carry_out, distill_interleaved, plan, run_recipe


def prepare_bench(bench: Bench) -> None:
    """Make the folders, note the matrix, and see that what is there is of the same recipes.

    Raises:
        RunFolderError: results or teachers of other recipes, or a folder that cannot be written.
    """
    check_bench(bench)
    with _writing(bench.out, "--out"):
        for name in ("teachers", "cells", "failures", "locks"):
            (bench.out / name).mkdir(parents=True, exist_ok=True)
        # By the clock of what failures are compared with, which may be another machine's.
        begun = bench.out / "locks" / "begun"
        begun.touch()
        bench.started = begun.stat().st_mtime
    with _writing(bench.results, "--results"):
        keep_matrix(bench.matrix, bench.results)


@contextmanager
def _writing(place: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{place} cannot be written ({error.strerror}). Choose another {option}."
        ) from error


def run_bench(bench: Bench, jobs: int = 1) -> list[str]:
    """Train what is missing.

    Args:
        bench: what, and where.
        jobs: processes that share the work; each takes cells that no other has.

    Returns:
        Names of cells and teachers of this shard that failed, now or before.

    Raises:
        Interrupted: SIGTERM or Ctrl-C; what was trained is saved.
        TrainingError: one of several processes died; what it had not done is left.
        CktfError: nothing was trained.
    """
    prepare_bench(bench)
    try:
        work_together(_work, bench, jobs, bench.out)
    except KeyboardInterrupt as stopped:
        raise Interrupted(str(stopped) or "Stopped.", bench.out) from stopped
    left = [cell for group in bench.groups() for cell in group if not bench.done(cell)]
    wanted = {name for cell in left for name in (cell.slug, cell.teacher.slug)}
    return sorted(name for name in wanted if bench.failure(name).exists())


def _work(bench: Bench) -> None:
    """Take what nobody has and is not done, until nothing is left to take."""
    reusable = Reusable(bench.reuse)
    # Cells that are done take no places in groups; shards stay as they were counted.
    left = [cell for group in bench.groups() for cell in group if _open(bench, cell)]
    groups = replace(bench, cells=left, shard=(1, 1)).groups()
    progress, passed, wait = True, False, False
    while progress or passed:
        # Where all that is left waits for teachers of other processes, this one waits too.
        wait, progress, passed = passed and not progress, False, False
        for group in groups:
            with _taken(bench, [cell for cell in group if _open(bench, cell)]) as mine:
                if mine:
                    try:
                        _do(bench, mine, reusable, wait)
                        progress = True
                    except _TeacherTakenError:
                        passed = True


class _TeacherTakenError(Exception):
    """Another process has the teacher."""


def _open(bench: Bench, cell: Cell) -> bool:
    """Whether a cell is neither done nor failed since this began."""
    return not bench.done(cell) and not _failed(bench, cell.slug)


def _failed(bench: Bench, slug: str) -> bool:
    path = bench.failure(slug)
    return path.exists() and path.stat().st_mtime >= bench.started


@contextmanager
def _taken(bench: Bench, cells: Group) -> Iterator[Group]:
    """Those of the cells that no other process has, for as long as this lasts."""
    with ExitStack() as locks:
        mine = [
            cell
            for cell in cells
            if locks.enter_context(file_lock(bench.out / "locks" / cell.slug, wait=False))
            # Another process may have done it since it was looked at.
            and _open(bench, cell)
        ]
        yield mine


def _do(bench: Bench, cells: Group, reusable: Reusable, wait: bool) -> None:
    """Train cells of one teacher; if they fail together, each alone."""
    teacher = _teacher(bench, cells[0].teacher, wait)
    if teacher is None:
        for cell in cells:
            error = f"its teacher failed: see {bench.failure(cell.teacher.slug)}"
            write_atomically(bench.failure(cell.slug), f"{error}\n".encode())
        return
    sha = weights_of(teacher)
    left = [with_weights(cell, teacher) for cell in cells]
    left = [cell for cell in left if not _settled(bench, cell, sha, reusable)]
    if left:
        _try(bench, left, sha)


def _try(bench: Bench, cells: Group, teacher: str) -> None:
    try:
        _train(bench, cells, teacher)
    except Exception as error:
        if len(cells) == 1:
            _note_failure(bench, cells[0].slug, error)
            return
        announce(f"failed together, each is tried alone: {error}", bench.show)
        for cell in cells:
            if _open(bench, cell):
                _try(bench, [cell], teacher)


def _settled(bench: Bench, cell: Cell, teacher: str, reusable: Reusable) -> bool:
    """Whether a cell was taken over, or could not be: a full disk is not the other cells' end."""
    try:
        return _take_over(bench, cell, teacher, reusable)
    except Exception as error:
        _note_failure(bench, cell.slug, error)
        return True


def _take_over(bench: Bench, cell: Cell, teacher: str, reusable: Reusable) -> bool:
    """Whether a finished run of this very recipe is elsewhere; it is copied then."""
    found = reusable.find(cell, teacher)
    if found is None:
        return False
    if isinstance(found, Result):
        data, pair = cell.column
        named = replace(
            found, data=data, pair=pair, method=cell.method, seed=cell.seed, student=cell.student
        )
        _keep(bench, cell, named, "taken over")
        return True
    folder = bench.folder(cell)
    if found.resolve() != folder.resolve():
        # Half a copy is not taken for a run.
        part = folder.with_name(f"{folder.name}.part")
        for place in (part, folder):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(found, part, ignore=shutil.ignore_patterns("checkpoints", "lock"))
        part.rename(folder)
    _keep(bench, cell, result_of(cell, folder, teacher, None), f"taken over from {found}")
    return True


def _train(bench: Bench, cells: Group, teacher: str) -> None:
    start = time.monotonic()
    runs = []
    for cell in cells:
        recipe = cell.recipe(taught=True)
        if isinstance(recipe, TransferRecipe):
            folder = bench.folder(cell)
            planned = plan(recipe, folder, resume=True, trust_code=bench.trust_code)
            carry_out(planned, show=False)
        else:
            runs.append((recipe, bench.folder(cell)))
    _distill(bench, cells, runs)
    for cell in cells:
        result = result_of(cell, bench.folder(cell), teacher, len(cells))
        _keep(bench, cell, result, f"{(time.monotonic() - start) / 60:.1f} min")


def _distill(bench: Bench, cells: Group, runs: Sequence[tuple[DistillRecipe, Path]]) -> None:
    if len(runs) > 1:
        announce(f"{len(runs)} in turn: {'; '.join(c.title for c in cells)}", bench.show)
        distill_interleaved(runs, trust_code=bench.trust_code)
    elif runs:
        announce(cells[0].title, bench.show)
        run_recipe(*runs[0], resume=True, show=False, trust_code=bench.trust_code)


def _keep(bench: Bench, cell: Cell, result: Result, how: str) -> None:
    bench.results.mkdir(parents=True, exist_ok=True)
    write_atomically(bench.result_file(cell), result.to_json())
    bench.failure(cell.slug).unlink(missing_ok=True)
    count = f"[{sum(map(bench.done, bench.cells))}/{len(bench.cells)}]"
    announce(f"{count} {cell.title}: {result.top1:.2f} % ({how})", bench.show)


def _note_failure(bench: Bench, slug: str, error: Exception) -> None:
    text = str(error) if isinstance(error, CktfError) else traceback.format_exc()
    write_atomically(bench.failure(slug), f"{text}\n".encode())
    announce(f"failed: {slug}: {text.strip().splitlines()[-1]}", bench.show)


def _teacher(bench: Bench, plan: TeacherPlan, wait: bool) -> Path | None:
    """A teacher's weights, trained by this process or one that is at it; None if it fails.

    Raises:
        _TeacherTakenError: another process is at it, and it is not to be waited for.
    """
    folder = plan.weights or bench.out / "teachers" / plan.slug
    with file_lock(bench.out / "locks" / plan.slug, wait) as mine:
        if not mine:
            raise _TeacherTakenError
        if _failed(bench, plan.slug):
            return None
        try:
            if plan.weights is None and not RunFolder(folder).finished:
                announce(f"teacher {plan.name} on {plan.data}", bench.show)
                run_recipe(
                    plan.recipe, folder, resume=True, show=False, trust_code=bench.trust_code
                )
            keep_teacher(bench.teacher_file(plan), teacher_record(plan, folder))
        except Exception as error:
            _note_failure(bench, plan.slug, error)
            return None
        bench.failure(plan.slug).unlink(missing_ok=True)
    return folder
