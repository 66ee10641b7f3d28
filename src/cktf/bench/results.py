"""What is kept of a cell: one small file, which says by what recipe and of which teacher it is."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml

from cktf.bench.cells import Cell, CellRecipe, TeacherPlan
from cktf.bench.matrix import Matrix, make_matrix
from cktf.engine import RunFolder, announce
from cktf.errors import CktfError, RunFolderError
from cktf.files import write_atomically
from cktf.locks import file_lock
from cktf.models import short_sha256
from cktf.recipes import find_weights_file, parse_any_recipe, read_recipe, result_fields, set_field
from cktf.workflows import read_teacher_ref

RESULTS, MATRIX, COSTS, LOCK = "results", "matrix.yaml", "costs.json", "results.lock"


@dataclass(frozen=True)
class Result:
    """A cell that is done.

    Attributes:
        data, pair, method, seed: which it is; the pair is `teacher:student`.
        recipe: fields that decide the result, by dotted name; its teacher by the weights.
        summary: of the run.
        top1_by_epoch: of the student, in per cent; empty where it was not kept.
        together: how many students took turns with it; None where nobody knows.
        note: what else is to be known of it.
        student: its name in the matrix, where its recipe has a path; empty in older files.
    """

    data: str
    pair: str
    method: str
    seed: int
    recipe: Mapping[str, Any]
    summary: Mapping[str, Any]
    top1_by_epoch: list[float]
    together: int | None
    note: str = ""
    student: str = ""

    @property
    def top1(self) -> float:
        """In per cent, of the last epoch; of a transfer, of its probe."""
        return float(self.summary["test_top1"])

    def to_json(self) -> bytes:
        """The file's text."""
        return (json.dumps(self.__dict__, indent=1, ensure_ascii=False) + "\n").encode()


def canonical(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same as it is read back from JSON."""
    back: dict[str, Any] = json.loads(json.dumps(dict(fields)))
    return back


def result_key(recipe: CellRecipe, teacher: str) -> dict[str, Any]:
    """What decides a cell's result: its recipe, and the weights of its teacher.

    Args:
        recipe: of the cell.
        teacher: fingerprint of the weights.
    """
    return canonical(result_fields(recipe) | {"teacher": f"sha256 {teacher}"})


@lru_cache(maxsize=256)
def _fingerprint(path: Path, _changed: int) -> str:
    return short_sha256(path)


def weights_of(path: Path) -> str:
    """Fingerprint of the weights in a run folder or file."""
    file = find_weights_file(str(path))
    return _fingerprint(file, file.stat().st_mtime_ns)


def result_of(cell: Cell, folder: Path, teacher: str, together: int | None) -> Result:
    """The result of a finished run folder."""
    run = RunFolder(folder)
    rows = RunFolder(folder / "student").rows() if not run.metrics.exists() else run.rows()
    curve = [row["test_top1"] for row in rows if row.get("test_top1") is not None]
    data, pair = cell.column
    summary = json.loads(run.summary.read_text())
    decided = result_key(cell.recipe(), teacher)
    return Result(
        data, pair, cell.method, cell.seed, decided, summary, curve, together, student=cell.student
    )


def read_result(path: Path) -> Result | None:
    """A result's file; None for a file of something else."""
    try:
        return Result(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def results_in(folder: Path) -> Path:
    """Where the results of a folder that `cktf bench` was given are: in it, or it itself.

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


def all_results(place: Path) -> list[Result]:
    """Results in a folder."""
    found = [read_result(path) for path in sorted(place.glob("*.json"))]
    return [result for result in found if result is not None]


def keep_matrix(matrix: Matrix, place: Path) -> None:
    """Put the matrix beside its results, for the order and the names of their table."""
    place.mkdir(parents=True, exist_ok=True)
    fields = matrix.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    write_atomically(place / MATRIX, text.encode())


def kept_matrix(place: Path) -> Matrix | None:
    """The matrix beside results."""
    path = place / MATRIX
    return make_matrix(read_recipe(path)) if path.exists() else None


def teacher_record(plan: TeacherPlan, weights: Path) -> dict[str, Any]:
    """What is kept of a teacher."""
    summary = (weights if weights.is_dir() else weights.parent) / "summary.json"
    trained = plan.weights is None and summary.is_file()
    return {
        "teacher": plan.name,
        "data": plan.data,
        "weights": f"sha256 {weights_of(weights)}",
        "recipe": canonical(result_fields(plan.recipe)) if trained else None,
        "summary": json.loads(summary.read_text()) if trained else None,
    }


def keep_teacher(path: Path, record: Mapping[str, Any]) -> None:
    """Keep what a teacher was; RunFolderError where students of another are compared already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of processes that share the folder, one looks and writes at a time.
    with file_lock(path.parent / LOCK):
        if path.exists():
            before = json.loads(path.read_text())["weights"]
            if before != record["weights"]:
                raise RunFolderError(
                    f"{path} is of a teacher with other weights ({before}, now "
                    f"{record['weights']}), and students of two are not compared. Give that one "
                    "with --teacher NAME=FILE, or choose other --results."
                )
            return
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


class Reusable:
    """Finished runs and results elsewhere, by what decided them.

    Args:
        folders: in which run folders and files of results are looked for, at any depth.
    """

    def __init__(self, folders: list[Path]) -> None:
        self._runs: dict[str, Path] = {}
        self._results: dict[str, Result] = {}
        for folder in folders:
            for path in sorted(folder.rglob("*.json")):
                self._note(path)

    def _note(self, path: Path) -> None:
        run = RunFolder(path.parent)
        try:
            if path == run.summary and run.finished:
                decided = _run_decided_by(run)
                if decided is not None:
                    self._runs[_key(decided)] = run.path
            elif result := read_result(path):
                self._results[_key(completed(result.recipe))] = result
        except (CktfError, OSError, ValueError, TypeError, KeyError) as error:
            # Of another version, or half a file: it is none of these cells.
            announce(f"not taken over: {path}: {error}", True)

    def find(self, cell: Cell, teacher: str) -> Path | Result | None:
        """A run folder, or a result alone, of the cell's very recipe."""
        key = _key(result_key(cell.recipe(), teacher))
        return self._runs.get(key) or self._results.get(key)


def _key(decided: Mapping[str, Any]) -> str:
    return json.dumps(decided, sort_keys=True)


def completed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A kept recipe with fields that there were not yet when it was kept, at their defaults."""
    fields: dict[str, Any] = {}
    for name, value in recipe.items():
        set_field(fields, name, value)
    return canonical(result_fields(parse_any_recipe(fields)) | {"teacher": recipe["teacher"]})


def _run_decided_by(run: RunFolder) -> dict[str, Any] | None:
    """None for a run that is no cell; CktfError where its teacher is gone."""
    fields = read_recipe(run.recipe)
    if fields.get("kind") not in ("distill", "transfer"):
        return None
    # What lies at its teacher's path by now may be another.
    taught = read_teacher_ref(run.path)
    sha = taught.sha256 if taught else weights_of(Path(fields["teacher"]))
    # Of weights apart from their network, the weights decide.
    recipe = parse_any_recipe(fields | {"teacher_weights": None})
    return result_key(cast(CellRecipe, recipe), sha.partition(" ")[0])


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Names of the fields in which two recipes differ."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield name
