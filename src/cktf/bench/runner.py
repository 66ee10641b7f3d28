"""Train the cells of a matrix, with any number of processes on one folder, resumable at any time.

OUT/teachers/…   a run folder for each teacher, trained once
OUT/cells/…      a run folder for each cell
OUT/results/…    a small file for each finished cell, and the matrix
OUT/failures/…   the error of each cell that failed
OUT/locks/…      locks of cells and teachers; the system frees a lock when its process ends
"""

import shutil
import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

from cktf.bench.cells import Cell
from cktf.bench.plan import Bench, Group, check_bench
from cktf.bench.results import (
    Result,
    Reusable,
    read_run,
    save_matrix_definition,
    save_teacher_record,
    teacher_record,
    weights_fingerprint,
)
from cktf.bench.worker_processes import run_in_processes
from cktf.engine import RunFolder, announce
from cktf.errors import CktfError, Interrupted, RunFolderError
from cktf.files import write_atomically
from cktf.locks import file_lock
from cktf.recipes import DistillRecipe, TransferRecipe
from cktf.workflows import distill_interleaved, plan_transfer, run_recipe, run_transfer


def prepare_bench(bench: Bench) -> None:
    """Make the folders, save the matrix, and check existing results.

    Raises:
        RunFolderError: results or teachers of other recipes, or a folder that cannot be written.
    """
    check_bench(bench)
    place, option = bench.out, "--out"
    try:
        for name in ("teachers", "cells", "failures", "locks"):
            (bench.out / name).mkdir(parents=True, exist_ok=True)
        # Failures are compared with the clock of the file system, which may be another machine's.
        begun = bench.out / "locks" / "begun"
        begun.touch()
        bench.started = begun.stat().st_mtime
        place, option = bench.results, "--results"
        save_matrix_definition(bench.matrix, bench.results)
    except OSError as error:
        raise RunFolderError(
            f"{place} cannot be written ({error.strerror}). Choose another {option}."
        ) from error


def run_bench(bench: Bench, jobs: int = 1) -> list[str]:
    """Train the cells that have no result.

    Args:
        bench: the matrix and its folder.
        jobs: number of processes, each of which takes cells that no other has.

    Returns:
        Names of cells and teachers of this shard that failed, now or before.

    Raises:
        Interrupted: SIGTERM or Ctrl-C; progress is saved.
        TrainingError: one of several processes died; its cells are left.
        CktfError: nothing was trained.
    """
    prepare_bench(bench)
    try:
        run_in_processes(_train_pending, bench, jobs, bench.out)
    except KeyboardInterrupt as interrupt:
        raise Interrupted(str(interrupt) or "Stopped.", bench.out) from interrupt
    pending = [cell for group in bench.groups() for cell in group if not bench.is_done(cell)]
    slugs = {name for cell in pending for name in (cell.slug, cell.teacher.slug)}
    return sorted(name for name in slugs if bench.failure_file(name).exists())


def _train_pending(bench: Bench) -> None:
    """Train cells that are neither done nor locked by another process, until none is left."""
    reusable = Reusable(bench.reuse)
    # Finished cells take no places in groups; shards stay as they were counted.
    pending = [cell for group in bench.groups() for cell in group if _is_pending(bench, cell)]
    groups = replace(bench, cells=pending, shard=(1, 1)).groups()
    progress, skipped = True, False
    while progress or skipped:
        # Wait only where all pending cells need teachers that other processes train.
        wait, progress, skipped = skipped and not progress, False, False
        for group in groups:
            with ExitStack() as locks:
                cells = [
                    cell
                    for cell in group
                    if _is_pending(bench, cell)
                    and locks.enter_context(file_lock(bench.out / "locks" / cell.slug, wait=False))
                    # Another process may have finished it before the lock was free.
                    and _is_pending(bench, cell)
                ]
                if cells:
                    trained = _train_group(bench, cells, reusable, wait)
                    progress |= trained
                    skipped |= not trained


def _is_pending(bench: Bench, cell: Cell) -> bool:
    return not bench.is_done(cell) and not _has_failed(bench, cell.slug)


def _has_failed(bench: Bench, slug: str) -> bool:
    """Whether a cell or teacher failed since this run of the matrix began."""
    path = bench.failure_file(slug)
    return path.exists() and path.stat().st_mtime >= bench.started


def _train_group(bench: Bench, cells: Group, reusable: Reusable, wait: bool) -> bool:
    """Train or take over cells of one teacher, which is trained first.

    Returns:
        False if another process trains the teacher, and `wait` is False.
    """
    teacher = cells[0].teacher
    weights = teacher.weights or bench.teacher_dir(teacher)
    with file_lock(bench.out / "locks" / teacher.slug, wait) as acquired:
        if not acquired:
            return False
        try:
            if not _has_failed(bench, teacher.slug):
                if teacher.weights is None and not RunFolder(weights).finished:
                    announce(f"teacher {teacher.name} on {teacher.data}", bench.show)
                    trust = bench.trust_code
                    run_recipe(teacher.recipe, weights, resume=True, show=False, trust_code=trust)
                save_teacher_record(bench.result_file(teacher), teacher_record(teacher, weights))
                bench.failure_file(teacher.slug).unlink(missing_ok=True)
        except Exception as error:
            _save_failure(bench, teacher.slug, error)
    if _has_failed(bench, teacher.slug):
        for cell in cells:
            text = f"its teacher failed: see {bench.failure_file(teacher.slug)}\n"
            write_atomically(bench.failure_file(cell.slug), text.encode())
        return True
    sha = weights_fingerprint(weights)
    teacher = replace(teacher, weights=weights)
    cells = [replace(cell, teacher=teacher) for cell in cells]
    if remaining := [cell for cell in cells if not _take_over(bench, cell, sha, reusable)]:
        _train_or_split(bench, remaining, sha)
    return True


def _train_or_split(bench: Bench, cells: Group, teacher: str) -> None:
    """Train cells together; if that fails, train each by itself."""
    start, trust = time.monotonic(), bench.trust_code
    titles = "; ".join(cell.title for cell in cells)
    announce(f"{len(cells)} in turn: {titles}" if len(cells) > 1 else titles, bench.show)
    runs = [(cell.recipe(with_teacher_weights=True), bench.run_dir(cell)) for cell in cells]
    recipe, folder = runs[0]
    try:
        if isinstance(recipe, TransferRecipe):
            plan = plan_transfer(recipe, folder, resume=True, trust_code=trust)
            run_transfer(plan, show=False)
        elif len(runs) > 1:
            # The cells of one matrix are of one kind, and transfers form no groups.
            distill_interleaved(cast(list[tuple[DistillRecipe, Path]], runs), trust_code=trust)
        else:
            run_recipe(recipe, folder, resume=True, show=False, trust_code=trust)
        for cell in cells:
            result = read_run(cell, bench.run_dir(cell), teacher, len(cells))
            _save_result(bench, cell, result, f"{(time.monotonic() - start) / 60:.1f} min")
    except Exception as error:
        if len(cells) == 1:
            _save_failure(bench, cells[0].slug, error)
            return
        announce(f"failed together, each is tried alone: {error}", bench.show)
        for cell in cells:
            if _is_pending(bench, cell):
                _train_or_split(bench, [cell], teacher)


def _take_over(bench: Bench, cell: Cell, teacher: str, reusable: Reusable) -> bool:
    """Copy a finished run or result of the same recipe from elsewhere; False if there is none."""
    source, folder = reusable.find(cell, teacher), bench.run_dir(cell)
    if source is None:
        return False
    try:
        if isinstance(source, Result):
            names = ("data", "pair", "method", "seed", "student")
            result = replace(source, **{name: getattr(cell, name) for name in names})
            _save_result(bench, cell, result, "taken over")
            return True
        if source.resolve() != folder.resolve():
            # An unfinished copy must not look like a run.
            part = folder.with_name(f"{folder.name}.part")
            for place in (part, folder):
                shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, part, ignore=shutil.ignore_patterns("checkpoints", "lock"))
            part.rename(folder)
        result = read_run(cell, folder, teacher, None)
        _save_result(bench, cell, result, f"taken over from {source}")
    except Exception as error:
        # Such as a full disk, where the other cells may need no copy.
        _save_failure(bench, cell.slug, error)
    return True


def _save_result(bench: Bench, cell: Cell, result: Result, origin: str) -> None:
    bench.results.mkdir(parents=True, exist_ok=True)
    write_atomically(bench.result_file(cell), result.to_json())
    bench.failure_file(cell.slug).unlink(missing_ok=True)
    count = f"[{sum(map(bench.is_done, bench.cells))}/{len(bench.cells)}]"
    announce(f"{count} {cell.title}: {result.top1:.2f} % ({origin})", bench.show)


def _save_failure(bench: Bench, slug: str, error: Exception) -> None:
    text = str(error) if isinstance(error, CktfError) else traceback.format_exc()
    write_atomically(bench.failure_file(slug), f"{text}\n".encode())
    announce(f"failed: {slug}: {text.strip().splitlines()[-1]}", bench.show)
