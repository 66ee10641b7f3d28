"""A comparison as Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from cktf.bench.captions import difference_text, notes
from cktf.bench.statistics import CONFIDENCE, Difference
from cktf.bench.tables import Comparison, Entry

PUBLISHED = "published"
_EMPTY = "–"


def markdown(table: Comparison) -> str:
    """Write a table for a README: best in bold, second in italics; its notes below."""
    contrasts, methods = table.contrasts, table.methods
    baselines = set(contrasts.baselines.values())
    head = f"Δ {baselines.pop()}" if len(baselines) == 1 else "Δ"
    head += f" [{CONFIDENCE:.0%}]" if contrasts.residual else ""
    columns = [["method", "teacher", *methods]]
    for column in table.columns:
        entries = [table.entries[column, method] for method in methods]
        accuracies = [_accuracy(entry, table.seeds) for entry in entries]
        columns.append([table.column_heading(column), _number(table.teachers[column]), *accuracies])
        if contrasts.differences:
            columns.append([head, "", *(_difference(entry.difference, 1) for entry in entries)])
        if table.is_published(column):
            figures = [table.published_teachers[column], *(entry.published for entry in entries)]
            columns.append([PUBLISHED, *map(_number, figures)])
    if contrasts.overall:
        overall = [_difference(contrasts.overall.get(m), len(table.columns)) for m in methods]
        columns.append(["Δ of all pairs", "", *overall])
    for head, costs, digits in (("time ×", table.times, 2), ("memory MiB", table.memory, 0)):
        if costs:
            columns.append(
                [head, "", *(_range(costs.get(method, []), digits) for method in methods)]
            )
    # A bar would end the cell.
    lines = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in zip(*columns, strict=True)
    ]
    lines.insert(1, "|---|" + "---:|" * (len(columns) - 1))
    return "\n".join([*lines, "", *notes(table)]) + "\n"


def csv_rows(table: Comparison) -> str:
    """Write a row for each method and pair, with the value of every seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["data", "teacher", "student", "method", "n", "mean", "sd", "rank", "baseline",
         "difference", "low", "high", "p", "adjusted_p", "relative_time", "peak_memory_mb",
         PUBLISHED, "by_seed"]
    )  # fmt: skip
    for (column, method), entry in table.entries.items():
        if entry.mean is not None:
            d = entry.difference
            figures = (d.points, d.low, d.high, d.p, d.adjusted_p) if d else [None] * 5
            seeds = " ".join(f"{seed}:{top1:.4f}" for seed, top1 in sorted(entry.values.items()))
            writer.writerow(
                [*column, method, len(entry.values), f"{entry.mean:.4f}", _csv_number(entry.std),
                 entry.rank or "", table.contrasts.baselines.get(method, ""),
                 *map(_csv_number, figures), _csv_number(entry.relative_time),
                 _csv_number(entry.memory_mb), _csv_number(entry.published), seeds]
            )  # fmt: skip
    return out.getvalue()


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _accuracy(entry: Entry, usual_seeds: int) -> str:
    if entry.mean is None:
        return _EMPTY
    text = f"{entry.mean:.2f}" + ("" if entry.std is None else f" ± {entry.std:.2f}")
    marks = {1: "**", 2: "*"}.get(entry.rank, "")
    return f"{marks}{text}{marks}{_count(len(entry.values), usual_seeds)}"


def _difference(difference: Difference | None, usual_pairs: int) -> str:
    if difference is None:
        return ""
    return difference_text(difference) + _count(difference.pairs, usual_pairs)


def _count(number: int, usual: int) -> str:
    """How many a mean is of, where that is not the usual number."""
    return "" if number == usual else f" ({number})"


def _number(value: float | None) -> str:
    return _EMPTY if value is None else f"{value:.2f}"


def _range(values: Sequence[float], digits: int) -> str:
    """One number, or the smallest and the largest over pairs."""
    if not values:
        return _EMPTY
    low, high = (f"{v:,.{digits}f}" for v in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
