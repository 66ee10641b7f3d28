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
    rows = [_heads(table), _teacher_row(table), *(_row(table, m) for m in table.methods)]
    # A bar would end the cell.
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    lines.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
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


def _heads(table: Comparison) -> list[str]:
    baselines = set(table.contrasts.baselines.values())
    head = f"Δ {baselines.pop()}" if len(baselines) == 1 else "Δ"
    head += f" [{CONFIDENCE:.0%}]" if table.contrasts.residual else ""
    heads = ["method"]
    for column in table.columns:
        heads += [table.column_heading(column), *[head] * table.has_differences]
        heads += [PUBLISHED] * table.is_published(column)
    heads += ["Δ of all pairs"] * bool(table.contrasts.overall)
    return heads + ["time ×"] * table.has_times + ["memory MiB"] * table.has_memory


def _teacher_row(table: Comparison) -> list[str]:
    row = ["teacher"]
    for column in table.columns:
        row += [_number(table.teachers[column], 2), *[""] * table.has_differences]
        if table.is_published(column):
            row.append(_number(table.published_teachers[column], 2))
    return row + [""] * (len(_heads(table)) - len(row))


def _row(table: Comparison, method: str) -> list[str]:
    row, entries = [method], [table.entries[column, method] for column in table.columns]
    for column, entry in zip(table.columns, entries, strict=True):
        row.append(_accuracy(entry, table.seeds))
        row += [_difference(entry.difference, 1)] * table.has_differences
        row += [_number(entry.published, 2)] * table.is_published(column)
    if table.contrasts.overall:
        row.append(_difference(table.contrasts.overall.get(method), len(table.columns)))
    times = [e.relative_time for e in entries if e.relative_time is not None]
    memory = [e.memory_mb for e in entries if e.memory_mb is not None]
    return row + [_range(times, 2)] * table.has_times + [_range(memory, 0)] * table.has_memory


def _accuracy(entry: Entry, usual_seeds: int) -> str:
    if entry.mean is None:
        return _EMPTY
    text = f"{entry.mean:.2f}"
    if entry.std is not None:
        text += f" ± {entry.std:.2f}"
    marks = {1: "**", 2: "*"}.get(entry.rank, "")
    return f"{marks}{text}{marks}{_count(len(entry.values), usual_seeds)}"


def _difference(difference: Difference | None, usual_pairs: int) -> str:
    if difference is None:
        return ""
    return difference_text(difference) + _count(difference.pairs, usual_pairs)


def _count(number: int, usual: int) -> str:
    """How many a mean is of, where that is not the usual number."""
    return "" if number == usual else f" ({number})"


def _number(value: float | None, digits: int) -> str:
    return _EMPTY if value is None else f"{value:,.{digits}f}"


def _range(values: Sequence[float], digits: int) -> str:
    """One number, or the smallest and the largest over pairs."""
    if not values:
        return _EMPTY
    low, high = (f"{v:,.{digits}f}" for v in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"
