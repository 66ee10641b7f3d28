"""Result files: one for each finished cell, with its recipe and its teacher's weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from cktf.bench.cells import Cell, CellRecipe, TeacherPlan
from cktf.bench.matrix import Matrix
from cktf.engine import RunFolder, announce
from cktf.errors import CktfError, RunFolderError
from cktf.files import write_atomically
from cktf.locks import file_lock
from cktf.models import short_sha256
from cktf.recipes import find_weights_file, parse_any_recipe, read_recipe, result_fields, set_field
from cktf.workflows import read_teacher_ref

FAILURES = "failures"
RESULTS, MATRIX, COSTS, LOCK = "results", "matrix.yaml", "costs.json", "results.lock"


class Column(NamedTuple):
    """A pair of networks on a data set; either name may have a colon in it, as timm's have."""

    data: str
    teacher: str
    student: str

    @property
    def pair(self) -> str:
        """`teacher:student`."""
        return f"{self.teacher}:{self.student}"


@dataclass(frozen=True)
class Result:
    """A finished cell.

    Attributes:
        data, pair, method, seed: the cell; the pair is `teacher:student`.
        recipe: fields that decide the result, by dotted name; the teacher by its weights.
        summary: summary of the run.
        top1_by_epoch: accuracies of the student in per cent; empty where they were not kept.
        interleaved: number of students that were trained in turn with it; None if unknown.
        note: a remark on the result.
        student: name in the matrix, where its recipe has a path; empty in older files.
    """

    data: str
    pair: str
    method: str
    seed: int
    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    top1_by_epoch: list[float]
    interleaved: int | None
    note: str = ""
    student: str = ""

    @property
    def top1(self) -> float:
        """Accuracy of the last epoch in per cent; for a transfer, of its probe."""
        return float(self.summary["test_top1"])

    @property
    def column(self) -> Column:
        """Data set and pair of networks."""
        student = self.student or str(self.recipe["student"])
        return Column(self.data, self.pair.removesuffix(f":{student}"), student)

    def to_json(self) -> bytes:
        """Text of the file."""
        return (json.dumps(self.__dict__, indent=1, ensure_ascii=False) + "\n").encode()


def to_plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values to those that JSON reads back."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(fields)))
    return plain


def result_key(recipe: CellRecipe, teacher: str) -> dict[str, Any]:
    """Fields that decide a cell's result: its recipe, and its teacher's fingerprint."""
    return to_plain(result_fields(recipe) | {"teacher": f"sha256 {teacher}"})


def weights_fingerprint(path: Path) -> str:
    """Fingerprint of the weights in a run folder or file."""
    file = find_weights_file(str(path))
    return _fingerprint(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _fingerprint(path: Path, _modified: int) -> str:
    return short_sha256(path)


def read_run(cell: Cell, folder: Path, teacher: str, interleaved: int | None) -> Result:
    """Read the result of a cell from its finished run folder."""
    run = RunFolder(folder)
    rows = run.rows() if run.metrics.exists() else RunFolder(folder / "student").rows()
    return Result(
        *cell.column,
        cell.method,
        cell.seed,
        result_key(cell.recipe(), teacher),
        json.loads(run.summary.read_text()),
        [row["test_top1"] for row in rows if row.get("test_top1") is not None],
        interleaved,
        student=cell.student,
    )


def read_result(path: Path) -> Result | None:
    """Read a result file; None for a file of something else."""
    try:
        fields = json.loads(path.read_text())
        if "together" in fields:
            # Name of the field in older files.
            fields["interleaved"] = fields.pop("together")
        return Result(**fields)
    except (OSError, ValueError, TypeError):
        return None


def results_dir(folder: Path) -> Path:
    """Find the results in the --out folder of `cktf bench`, or in the folder itself.

    Raises:
        RunFolderError: none there.
    """
    for place in (folder / RESULTS, folder):
        if any(read_result(path) for path in place.glob("*.json")):
            return place
    raise RunFolderError(
        f"{folder} holds no results of cktf bench. Give its --out, or a folder of results; a cell "
        "leaves its result when it is done."
    )


def read_results(place: Path) -> list[Result]:
    """Read all result files in a folder."""
    results = map(read_result, sorted(place.glob("*.json")))
    return [result for result in results if result is not None]


def save_matrix_definition(matrix: Matrix, place: Path) -> None:
    """Write the matrix beside its results, for the order and the names of their table."""
    place.mkdir(parents=True, exist_ok=True)
    fields = matrix.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    write_atomically(place / MATRIX, text.encode())


def teacher_record(plan: TeacherPlan, weights: Path) -> dict[str, Any]:
    """Describe a teacher: its weights, and its training if that was done here."""
    summary = (weights if weights.is_dir() else weights.parent) / "summary.json"
    trained = plan.weights is None and summary.is_file()
    return {
        "teacher": plan.name,
        "data": plan.data,
        "weights": f"sha256 {weights_fingerprint(weights)}",
        "recipe": to_plain(result_fields(plan.recipe)) if trained else None,
        "summary": json.loads(summary.read_text()) if trained else None,
    }


def save_teacher_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a teacher's record.

    Raises:
        RunFolderError: the folder has results of students of another teacher.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One of the processes that share the folder compares and writes at a time.
    with file_lock(path.parent / LOCK):
        if not path.exists():
            write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
            return
        before = json.loads(path.read_text())["weights"]
    if before != record["weights"]:
        raise RunFolderError(
            f"{path} is of a teacher with other weights ({before}, now {record['weights']}), and "
            "students of two are not compared. Give that one with --teacher NAME=FILE, or choose "
            "other --results."
        )


class Reusable:
    """Finished runs and results of other folders, by the fields that decide them.

    Args:
        folders: searched for run folders and result files at any depth.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._runs: dict[str, Path] = {}
        self._results: dict[str, Result] = {}
        for path in (path for folder in folders for path in sorted(folder.rglob("*.json"))):
            try:
                self._add(path)
            except (CktfError, OSError, ValueError, TypeError, KeyError) as error:
                # A file of another version, or half a file, is none of these cells.
                announce(f"not taken over: {path}: {error}", True)

    def _add(self, path: Path) -> None:
        run = RunFolder(path.parent)
        if path == run.summary and run.finished:
            fields = read_recipe(run.recipe)
            if fields.get("kind") in ("distill", "transfer"):
                # The file at its teacher's path may have been replaced since.
                ref = read_teacher_ref(run.path)
                sha = ref.sha256 if ref else weights_fingerprint(Path(fields["teacher"]))
                # The weights decide, wherever they lie.
                recipe = cast(CellRecipe, parse_any_recipe(fields | {"teacher_weights": None}))
                self._runs[_hashable(result_key(recipe, sha.partition(" ")[0]))] = run.path
        elif result := read_result(path):
            self._results[_hashable(fill_defaults(result.recipe))] = result

    def find(self, cell: Cell, teacher: str) -> Path | Result | None:
        """Find a run folder, or a result alone, with exactly the cell's recipe."""
        key = _hashable(result_key(cell.recipe(), teacher))
        return self._runs.get(key) or self._results.get(key)


def _hashable(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def fill_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Add fields that were added since a result or teacher was recorded, at their defaults."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        set_field(fields, name, value)
    teacher = {"teacher": recipe["teacher"]} if "teacher" in recipe else {}
    return to_plain(result_fields(parse_any_recipe(fields)) | teacher)


def differing_fields(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names of the fields in which two recipes differ, joined by commas; empty if none."""
    names = sorted(before.keys() | now.keys())
    return ", ".join(name for name in names if before.get(name) != now.get(name))
