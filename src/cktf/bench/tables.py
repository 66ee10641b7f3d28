"""The paper's form: methods down, pairs across, from the results of a matrix."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cktf.bench.cost import Cost, cost_key, costs_in
from cktf.bench.matrix import Matrix
from cktf.bench.published import published
from cktf.bench.results import Result, all_results, kept_matrix, results_in
from cktf.bench.statistics import Difference, interval, paired, spread
from cktf.errors import RecipeError, nearest
from cktf.objectives import METHODS


class Column(NamedTuple):
    """A pair of networks on a data set; either name may have a colon in it, as timm's have."""

    data: str
    teacher: str
    student: str

    @property
    def pair(self) -> str:
        """`teacher:student`."""
        return f"{self.teacher}:{self.student}"


def _column(result: Result) -> Column:
    student = result.student or str(result.recipe["student"])
    return Column(result.data, result.pair.removesuffix(f":{student}"), student)


@dataclass(frozen=True)
class Entry:
    """One method on one pair.

    Attributes:
        values: top-1 in per cent by seed.
        rank: 1 for the best mean of the column, 2 for the second, 0 for the others.
        base: the method that it is compared with; None for one that is not.
        difference: from that, of the same seeds.
        published: top-1 of the paper for this very data set, pair and method.
        relative_time: of a step, over the student alone; None where it is not known.
        memory_mb: peak.
    """

    values: Mapping[int, float]
    rank: int
    base: str | None
    difference: Difference | None
    published: float | None
    relative_time: float | None
    memory_mb: float | None

    @property
    def mean(self) -> float | None:
        """Over seeds; None where there is none."""
        return statistics.mean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None for fewer than two."""
        return spread(list(self.values.values()))


@dataclass(frozen=True)
class Progress:
    """How much of a matrix is done.

    Attributes:
        done, planned: numbers of its cells.
        columns, methods: of which there is no cell yet.
    """

    done: int
    planned: int
    columns: list[Column]
    methods: list[str]


@dataclass(frozen=True)
class Comparison:
    """A table, before it is written in some form.

    Attributes:
        about: what was compared.
        conditions: one line on epochs, devices and versions.
        columns: pairs of networks on their data sets.
        methods: in order.
        teachers: top-1 of the teacher of each column.
        published_teachers: likewise, as published.
        entries: by column and method.
        overall: means of the differences of all columns, by method.
        added: what each method is compared with and without, in place of a baseline.
        progress: of the matrix; None where it is not kept.
        cost_devices: on which costs were measured.
        mixed: columns whose students had several teachers, of other weights.
        mixed_engines: what computed the results, where they differ in it: name of the difference
            (`commit`, `cpu`, …) to its values.
    """

    about: str
    conditions: str
    columns: list[Column]
    methods: list[str]
    teachers: dict[Column, float | None]
    published_teachers: dict[Column, float | None]
    entries: dict[tuple[Column, str], Entry]
    overall: dict[str, Difference]
    added: str | None
    progress: Progress | None
    cost_devices: list[str]
    mixed: list[Column]
    mixed_engines: dict[str, list[str]]

    @property
    def bases(self) -> dict[str, str]:
        """What each method is compared with, for those that are."""
        found = {method: entry.base for (_, method), entry in self.entries.items()}
        return {method: base for method, base in found.items() if base is not None}

    @property
    def seeds(self) -> int:
        """Of the entry that has most."""
        return max(len(entry.values) for entry in self.entries.values())

    @property
    def is_even(self) -> bool:
        """Whether every entry and difference is from that many seeds."""
        found = {len(e.values) for e in self.entries.values() if e.values}
        found |= {e.difference.pairs for e in self.entries.values() if e.difference}
        return found == {self.seeds}

    @property
    def has_intervals(self) -> bool:
        """Whether any difference has one."""
        return any(e.difference and e.difference.pairs > 1 for e in self.entries.values())

    @property
    def shown(self) -> set[str]:
        """Which columns there is something for."""
        entries = self.entries.values()
        # Costs are of one method, a row of two has none; and one cost alone compares nothing.
        times, sizes = ([getattr(e, n) for e in entries] for n in ("relative_time", "memory_mb"))
        shown = {
            "difference": any(e.difference for e in entries),
            "overall": len(self.columns) > 1 and bool(self.overall),
            "time": not self.added and _compares(times),
            "memory": not self.added and _compares(sizes),
        }
        return {name for name, wanted in shown.items() if wanted}

    def heading(self, column: Column) -> str:
        """What a column is called; its data set only where there are others."""
        pair = f"{column.teacher} → {column.student}"
        return pair if {c.data for c in self.columns} == {column.data} else f"{column.data}: {pair}"

    def is_published(self, column: Column, methods: Sequence[str]) -> bool:
        """Whether there is a figure of the paper for any of these methods in a column."""
        return any(self.entries[column, m].published is not None for m in methods)


def _compares(costs: Sequence[float | None]) -> bool:
    return sum(cost is not None for cost in costs) > 1


def compare(folder: Path, baseline: str | None = None) -> Comparison:
    """The table of a folder of results.

    Args:
        folder: that `cktf bench` was given as --out, or its folder of results.
        baseline: a method; by default what the matrix says of each.

    Raises:
        CktfError: no results there, or no such method.
    """
    place = results_in(folder)
    results, matrix = all_results(place), kept_matrix(place)
    columns, methods = _order(results, matrix)
    if baseline is not None and baseline not in methods:
        raise RecipeError(
            [f"--baseline {baseline}: no result has it. {nearest(baseline, methods)}"]
        )
    bases = _bases(methods, matrix, baseline)
    values: dict[tuple[Column, str], dict[int, float]] = {}
    held_out = matrix is not None and matrix.held_out
    for result in results:
        top1 = result.summary.get("validation_top1") if held_out else result.top1
        if top1 is None:
            raise RecipeError([f"held_out: {result.method} held no images out. Train it anew."])
        values.setdefault((_column(result), result.method), {})[result.seed] = float(top1)
    paper = {(row.dataset, row.pair, row.method): row.top1 for row in published()}
    strings = {(_column(r), r.method): as_published(str(r.recipe["method"])) for r in results}
    entries = {}
    costs = _costs(results, place)
    for column in columns:
        ranks = _ranks({m: values[column, m] for m in methods if (column, m) in values})
        plain = (costs.get((column, m)) for m in methods if strings.get((column, m)) == "ce")
        alone = next((cost for cost in plain if cost), None)
        for method in methods:
            cost = costs.get((column, method))
            own = values.get((column, method), {})
            base = values.get((column, bases[method] or ""), {})
            entries[column, method] = Entry(
                own,
                ranks.get(method, 0),
                bases[method],
                paired(own, base),
                paper.get((column.data, column.pair, strings.get((column, method), ""))),
                _relative_time(cost, alone),
                cost.peak_memory_mb if cost else None,
            )
    return Comparison(
        matrix.about if matrix else "",
        _conditions(results, held_out),
        columns,
        methods,
        {column: None if held_out else _teacher(results, column) for column in columns},
        {column: paper.get((column.data, column.pair, "teacher")) for column in columns},
        entries,
        _overall(entries, methods),
        matrix.added if matrix is not None and baseline is None else None,
        None if matrix is None else _progress(results, matrix),
        sorted({cost.device for cost in costs.values()}),
        [column for column in columns if len(_teachers(results, column)) > 1],
        _mixed_engines(results),
    )


def _progress(results: Sequence[Result], matrix: Matrix) -> Progress:
    planned = {
        (Column(str(data["name"]), pair.teacher, pair.student), method, seed): None
        for data in matrix.data
        for pair in matrix.pairs
        for method in matrix.methods
        for seed in matrix.seeds
        if method not in pair.without
    }
    done = {(_column(r), r.method, r.seed) for r in results} & planned.keys()
    seen = {column for column, _, _ in done}, {method for _, method, _ in done}
    columns = [c for c in dict.fromkeys(column for column, _, _ in planned) if c not in seen[0]]
    methods = [m for m in dict.fromkeys(method for _, method, _ in planned) if m not in seen[1]]
    return Progress(len(done), len(planned), columns, methods)


def _bases(
    methods: Sequence[str], matrix: Matrix | None, baseline: str | None
) -> dict[str, str | None]:
    """The method that each is compared with: one for all, or as the matrix says."""
    if baseline is None and matrix is not None and matrix.added is not None:
        plain = {m: m.removesuffix(f"+{matrix.added}") for m in methods}
        return {m: p if p != m and p in methods else None for m, p in plain.items()}
    own = {}
    if baseline is None and matrix is not None:
        baseline = matrix.baseline
        own = {name: entry.against for name, entry in matrix.methods.items() if entry.against}
    bases = {m: own.get(m, baseline) for m in methods}
    return {m: b if b != m and b in methods else None for m, b in bases.items()}


def as_published(method: str) -> str:
    """A method string as the published figures name it.

    What only initializes is no part of the loss: its weight is the matrix's own.
    """
    terms = (term.partition(":") for term in method.split("+"))
    named = (
        name if _only_initializes(name) else f"{name}{colon}{own}" for name, colon, own in terms
    )
    return "+".join(sorted(named))


def _only_initializes(name: str) -> bool:
    return name in METHODS and METHODS[name].only_initializes


def _order(results: Sequence[Result], matrix: Matrix | None) -> tuple[list[Column], list[str]]:
    """Columns and methods that have results, in the matrix's order, then others."""
    columns = list(dict.fromkeys(map(_column, results)))
    methods = list(dict.fromkeys(r.method for r in results))
    if matrix is not None:
        known = [
            Column(str(data["name"]), pair.teacher, pair.student)
            for data in matrix.data
            for pair in matrix.pairs
        ]
        columns.sort(key=lambda c: known.index(c) if c in known else len(known))
        names = list(matrix.methods)
        methods.sort(key=lambda m: names.index(m) if m in names else len(names))
    return columns, methods


def _ranks(values: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
    """1 for the best mean and 2 for the second, as they are printed; ties share a rank."""
    means = {m: round(statistics.mean(v.values()), 2) for m, v in values.items()}
    best = sorted(set(means.values()), reverse=True)[:2]
    return {m: best.index(mean) + 1 for m, mean in means.items() if mean in best}


def _overall(
    entries: Mapping[tuple[Column, str], Entry], methods: Sequence[str]
) -> dict[str, Difference]:
    """Differences over pairs of networks, each of which counts once.

    Seeds of one pair are more alike than pairs are: as draws of their own they would make the
    interval too narrow.
    """
    found = {}
    for method in methods:
        own = [entry.difference for (_, name), entry in entries.items() if name == method]
        difference = interval([d.mean for d in own if d is not None])
        if difference is not None:
            found[method] = difference
    return found


def _teacher(results: Sequence[Result], column: Column) -> float | None:
    name = "teacher_probe_top1" if _is_transfer(results, column) else "teacher_top1"
    told = [r.summary.get(name) for r in results if _column(r) == column]
    found = {float(top1) for top1 in told if top1 is not None}
    return statistics.mean(found) if found else None


def _teachers(results: Sequence[Result], column: Column) -> set[object]:
    """Fingerprints of their weights."""
    return {r.recipe.get("teacher") for r in results if _column(r) == column}


def _mixed_engines(results: Sequence[Result]) -> dict[str, list[str]]:
    """Parts of the code and the machine in which results differ, with their values."""
    found: dict[str, set[str]] = {}
    for result in results:
        summary = result.summary
        cpu = summary.get("cpu") and f"{summary['cpu']} ({' '.join(summary['cpu_flags'])})"
        record = {
            "commit": summary.get("commit"),
            "cpu": cpu,
            "device": summary["device"],
            "precision": summary.get("precision", result.recipe["runtime.precision"]),
            "bfloat16": summary.get("bfloat16"),
            "PyTorch": summary["versions"]["torch"],
        }
        for name, value in record.items():
            found.setdefault(name, set()).add(str(value or "not recorded"))
    return {name: sorted(values) for name, values in found.items() if len(values) > 1}


def _is_transfer(results: Sequence[Result], column: Column) -> bool:
    """Whether a column's cells are transfers without labels."""
    return any(r.recipe["kind"] == "transfer" for r in results if _column(r) == column)


def _costs(results: Sequence[Result], place: Path) -> dict[tuple[Column, str], Cost]:
    """As measured by themselves; finished runs shared their machine and process with others."""
    measured = costs_in(place)
    found = {
        (_column(r), r.method): measured.get(cost_key(r.data, r.pair, r.method)) for r in results
    }
    return {key: cost for key, cost in found.items() if cost is not None}


def _relative_time(cost: Cost | None, alone: Cost | None) -> float | None:
    """Of a step over the student alone, on the same device."""
    if cost is None or alone is None or cost.device != alone.device:
        return None
    return cost.step_seconds / alone.step_seconds


def _conditions(results: Sequence[Result], held_out: bool) -> str:
    """What travels with the numbers."""

    def several(values: Sequence[object]) -> str:
        return ", ".join(map(str, dict.fromkeys(values)))

    seeds = sorted({r.seed for r in results})
    images = [r.summary["test_images"] for r in results if r.summary.get("test_images")]
    versions = [r.summary["versions"]["torch"] for r in results]
    if held_out:
        measured = "accuracy on held-out training images, of the epoch that is best on them"
    else:
        probed = any(r.recipe["kind"] == "transfer" for r in results)
        what = "the probe of the last epoch" if probed else "the last epoch"
        measured = f"accuracy of {what} on {several([f'{n:,}' for n in images])} test images"
    return (
        f"{len(results)} student{'s'[: len(results) - 1]}, "
        f"seed{'s'[: len(seeds) - 1]} {several(seeds)}; "
        f"{several([r.summary['epochs'] for r in results])} epochs; {measured}; precision "
        f"{several([r.summary.get('precision', r.recipe['runtime.precision']) for r in results])}; "
        f"{several([r.summary['device'] for r in results])}; PyTorch {several(versions)}"
    )
