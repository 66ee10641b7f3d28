"""The comparison of a folder of results: methods down, pairs of networks across."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cktf.bench.contrasts import Contrasts, Key, contrast_means
from cktf.bench.cost import cost_key, read_costs
from cktf.bench.matrix import Matrix, read_matrix
from cktf.bench.published import published_accuracies
from cktf.bench.results import FAILURES, MATRIX, Column, Result, read_results, results_dir
from cktf.bench.statistics import Difference, sample_std
from cktf.errors import RecipeError, nearest
from cktf.objectives import METHODS

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One method on one pair.

    Attributes:
        values: top-1 in per cent by seed.
        rank: 1 for the best mean of the column, 2 for the second, 0 for the others.
        difference: from the baseline's mean; None without a baseline.
        published: top-1 of the paper for this data set, pair and method.
        relative_time: time of a step over the student alone's.
        memory_mb: peak memory.
    """

    values: Mapping[int, float]
    rank: int
    difference: Difference | None
    published: float | None
    relative_time: float | None
    memory_mb: float | None

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without any."""
        return statistics.mean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        return sample_std(list(self.values.values()))


@dataclass(frozen=True)
class Comparison:
    """A table before it is written in some form.

    Attributes:
        about: the matrix's description.
        conditions: one line on epochs, devices and versions.
        columns: pairs of networks on their data sets.
        methods: rows, in order.
        teachers: top-1 of the teacher of each column.
        published_teachers: the teachers' top-1 in the paper.
        entries: by column and method.
        contrasts: differences from the baselines, and the statistics behind them.
        progress: numbers of finished and of planned cells; None for results without a matrix.
        missing_methods: methods of the matrix without any result.
        failures: names of the cells and teachers that failed at the last try.
        cost_devices: devices on which costs were measured.
        mixed_teachers: columns whose students had several teachers, of other weights.
        mixed_environments: in what code and machine results differ (`commit`, `cpu`, …), with
            the values.
    """

    about: str
    conditions: str
    columns: list[Column]
    methods: list[str]
    teachers: dict[Column, float | None]
    published_teachers: dict[Column, float | None]
    entries: dict[Key, Entry]
    contrasts: Contrasts
    progress: tuple[int, int] | None
    missing_methods: list[str]
    failures: list[str]
    cost_devices: list[str]
    mixed_teachers: list[Column]
    mixed_environments: dict[str, list[str]]

    @property
    def num_seeds(self) -> int:
        """Number of seeds of the entry that has most."""
        return max(len(entry.values) for entry in self.entries.values())

    @property
    def times(self) -> dict[str, list[float]]:
        """Relative times of steps by method; empty unless there are several to compare."""
        return self._costs("relative_time")

    @property
    def memory(self) -> dict[str, list[float]]:
        """Peaks of memory by method; empty unless there are several to compare."""
        return self._costs("memory_mb")

    def _costs(self, name: str) -> dict[str, list[float]]:
        costs: dict[str, list[float]] = {}
        for (_, method), entry in self.entries.items():
            if (cost := getattr(entry, name)) is not None:
                costs.setdefault(method, []).append(cost)
        return costs if sum(map(len, costs.values())) > 1 else {}

    def column_heading(self, column: Column) -> str:
        """Name of a column, with its data set only where there are several."""
        pair = f"{column.teacher} → {column.student}"
        return pair if {c.data for c in self.columns} == {column.data} else f"{column.data}: {pair}"

    def is_published(self, column: Column) -> bool:
        """Whether the paper has a figure for any method of a column."""
        return any(self.entries[column, m].published is not None for m in self.methods)


def compare(folder: Path, baseline: str | None = None) -> Comparison:
    """Read a folder of results as a table.

    Args:
        folder: the --out of `cktf bench`, or its folder of results.
        baseline: a method that all are compared with; by default what the matrix says of each.

    Raises:
        CktfError: no results there, or no such method.
    """
    place = results_dir(folder)
    results, path = read_results(place), place / MATRIX
    matrix = read_matrix(path) if path.exists() else None
    sets, pairs = (matrix.data, matrix.pairs) if matrix else ([], [])
    planned = [Column(str(data["name"]), p.teacher, p.student) for data in sets for p in pairs]
    columns = _in_order((r.column for r in results), planned)
    methods = _in_order((r.method for r in results), list(matrix.methods) if matrix else [])
    if baseline is not None and baseline not in methods:
        raise RecipeError(
            [f"--baseline {baseline}: no result has it. {nearest(baseline, methods)}"]
        )
    held_out = matrix is not None and matrix.held_out
    values: dict[Key, dict[int, float]] = {}
    for result in results:
        top1 = result.summary.get("validation_top1") if held_out else result.top1
        if top1 is None:
            raise RecipeError([f"held_out: {result.method} held no images out. Train it anew."])
        values.setdefault((result.column, result.method), {})[result.seed] = float(top1)
    contrasts = contrast_means(values, columns, *_baselines(methods, matrix, baseline))
    measured = read_costs(place)
    costs = {(c, m): measured.get(cost_key(c.data, c.pair, m)) for c, m in values}
    paper = {(row.dataset, row.pair, row.method): row.top1 for row in published_accuracies()}
    strings = {(r.column, r.method): as_published(str(r.recipe["method"])) for r in results}
    entries = {}
    for column in columns:
        # Means are ranked as they are printed; ties share a rank.
        means = {
            m: round(statistics.mean(v.values()), 2) for (c, m), v in values.items() if c == column
        }
        best = sorted(set(means.values()), reverse=True)[:2]
        alone = (costs.get((column, m)) for m in methods if strings.get((column, m)) == "ce")
        first_alone = next((cost for cost in alone if cost), None)
        for method in methods:
            key = column, method
            cost = costs.get(key)
            relative_time = None
            if cost and first_alone and cost.device == first_alone.device:
                relative_time = cost.step_seconds / first_alone.step_seconds
            entries[key] = Entry(
                values.get(key, {}),
                best.index(means[method]) + 1 if means.get(method) in best else 0,
                contrasts.differences.get(key),
                paper.get((column.data, column.pair, strings.get(key, ""))),
                relative_time,
                cost.peak_memory_mb if cost else None,
            )
    return Comparison(
        about=matrix.about if matrix else "",
        conditions=_conditions(results, held_out),
        columns=columns,
        methods=methods,
        teachers={c: None if held_out else _teacher_top1(results, c) for c in columns},
        published_teachers={c: paper.get((c.data, c.pair, "teacher")) for c in columns},
        entries=entries,
        contrasts=contrasts,
        progress=_progress(results, matrix) if matrix else None,
        missing_methods=[m for m in (matrix.methods if matrix else ()) if m not in methods],
        failures=sorted(path.stem for path in (place.parent / FAILURES).glob("*.txt")),
        cost_devices=sorted({cost.device for cost in costs.values() if cost}),
        mixed_teachers=[
            c
            for c in columns
            if len({r.recipe.get("teacher") for r in results if r.column == c}) > 1
        ],
        mixed_environments=_differing_environments(results),
    )


def _in_order(found: Iterable[T], planned: Sequence[T]) -> list[T]:
    """In the matrix's order, those that it does not have last."""
    unique = dict.fromkeys(found)
    return [x for x in planned if x in unique] + [x for x in unique if x not in planned]


def _baselines(
    methods: Sequence[str], matrix: Matrix | None, baseline: str | None
) -> tuple[dict[str, str], str | None]:
    """The method that each is compared with, and the method of the primary contrast."""
    entries = matrix.methods if matrix else {}
    usual, primary = (matrix.baseline, matrix.primary) if matrix else (None, None)
    defaults = {m: (m in entries and entries[m].against) or usual for m in methods}
    pairs = defaults if baseline is None else dict.fromkeys(methods, baseline)
    if primary is not None and pairs.get(primary) != defaults.get(primary):
        primary = None
    return {m: b for m, b in pairs.items() if b is not None and b != m and b in methods}, primary


def as_published(method: str) -> str:
    """A method string as the published figures name it.

    A method that only initializes is no part of the loss: its weight is the matrix's.
    """
    terms = []
    for term in method.split("+"):
        name = term.partition(":")[0]
        initializes = name in METHODS and METHODS[name].only_initializes
        terms.append(name if initializes else term)
    return "+".join(sorted(terms))


def _progress(results: Sequence[Result], matrix: Matrix) -> tuple[int, int]:
    """Numbers of finished and of planned cells."""
    planned = {
        (str(data["name"]), f"{pair.teacher}:{pair.student}", method, seed)
        for data in matrix.data
        for pair in matrix.pairs
        for method in matrix.methods.keys() - pair.without
        for seed in matrix.seeds
    }
    return len(planned & {(r.data, r.pair, r.method, r.seed) for r in results}), len(planned)


def _teacher_top1(results: Sequence[Result], column: Column) -> float | None:
    names = {"distill": "teacher_top1", "transfer": "teacher_probe_top1"}
    values = {r.summary.get(names[r.recipe["kind"]]) for r in results if r.column == column}
    known = [float(top1) for top1 in values if top1 is not None]
    return statistics.mean(known) if known else None


def _differing_environments(results: Sequence[Result]) -> dict[str, list[str]]:
    """Parts of the code and the machine in which results differ, with their values."""
    found: dict[str, set[str]] = {}
    for result in results:
        summary = result.summary
        cpu = summary.get("cpu") and f"{summary['cpu']} ({' '.join(summary['cpu_flags'])})"
        record = {
            "commit": summary.get("commit"),
            "cpu": cpu,
            "device": summary["device"],
            "precision": _precision(result),
            "bfloat16": summary.get("bfloat16"),
            "PyTorch": summary["versions"]["torch"],
        }
        for name, value in record.items():
            found.setdefault(name, set()).add(str(value or "not recorded"))
    return {name: sorted(values) for name, values in found.items() if len(values) > 1}


def _precision(result: Result) -> object:
    return result.summary.get("precision", result.recipe["runtime.precision"])


def _conditions(results: Sequence[Result], held_out: bool) -> str:
    """The conditions that the numbers hold under."""

    def join(values: Iterable[object]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    seeds = sorted({r.seed for r in results})
    images = [f"{n:,}" for r in results if (n := r.summary.get("test_images"))]
    if held_out:
        measured = "accuracy on held-out training images, of the epoch that is best on them"
    else:
        transfer = any(r.recipe["kind"] == "transfer" for r in results)
        epoch = "the probe of the last epoch" if transfer else "the last epoch"
        measured = f"accuracy of {epoch} on {join(images)} test images"
    return (
        f"{len(results)} student{'s'[: len(results) - 1]}, "
        f"seed{'s'[: len(seeds) - 1]} {join(seeds)}; "
        f"{join(r.summary['epochs'] for r in results)} epochs; {measured}; "
        f"precision {join(map(_precision, results))}; "
        f"{join(r.summary['device'] for r in results)}; "
        f"PyTorch {join(r.summary['versions']['torch'] for r in results)}"
    )
