"""A comparison as Markdown, with notes below it, and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

from cktf.bench.statistics import CONFIDENCE, Difference
from cktf.bench.tables import Comparison, Entry

PUBLISHED = "published"
_EMPTY = "–"
_VERDICTS = {
    "ahead": "ahead of {}",
    "behind": "behind {}",
    "open": "not told apart from {}",
}


def markdown(table: Comparison) -> str:
    """Write a table for a README: best in bold, second in italics; its notes below."""
    contrasts, methods = table.contrasts, table.methods
    baselines = set(contrasts.baselines.values())
    head = f"Δ {baselines.pop()}" if len(baselines) == 1 else "Δ"
    head += f" [{CONFIDENCE:.0%}]" if contrasts.residual else ""
    columns = [["method", "teacher", *methods]]
    for column in table.columns:
        entries = [table.entries[column, method] for method in methods]
        accuracies = [_accuracy(entry, table.num_seeds) for entry in entries]
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
    return f"{marks}{text}{marks}{_suffix_if_unusual(len(entry.values), usual_seeds)}"


def _difference(difference: Difference | None, usual_pairs: int) -> str:
    if difference is None:
        return ""
    return difference_text(difference) + _suffix_if_unusual(difference.pairs, usual_pairs)


def _suffix_if_unusual(number: int, usual: int) -> str:
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


def notes(table: Comparison) -> list[str]:
    """Conditions, statistics, verdicts and sources, a line each."""
    about = " ".join(table.about.split()).removesuffix(".")
    entry = "one seed"
    if table.num_seeds > 1:
        entry = f"mean ± standard deviation over {table.num_seeds} seeds"
    if {len(e.values) for e in table.entries.values() if e.values} != {table.num_seeds}:
        entry += ", or over (n)"
        if 1 in {len(e.values) for e in table.entries.values()}:
            entry += "; the spread of one seed is unknown"
    lines = [
        f"{f'{about}. ' if about else ''}Top-1 %, {entry}; **best**, *second* of a column. "
        f"{table.conditions}.",
    ]
    lines += _progress(table)
    if table.mixed_teachers:
        lines.append(
            f"On {', '.join(map(table.column_heading, table.mixed_teachers))}, students had "
            "several teachers, and their differences are not of methods alone."
        )
    if table.mixed_environments:
        parts = "; ".join(f"{n} ({', '.join(v)})" for n, v in table.mixed_environments.items())
        lines.append(
            f"Mixed: these cells were not all computed alike, and small differences may come from "
            f"that. They differ in {parts}."
        )
    lines += [*_statistics(table), *verdicts(table)]
    if any(map(table.is_published, table.columns)):
        lines.append("Published: Zhao, Chen, Zhao, ICASSP 2023, Table 1; not measured here.")
    costs = ["time of a step over that of the student alone"] * bool(table.times)
    costs += ["peak memory"] * bool(table.memory)
    if costs:
        names, devices = " and ".join(costs), ", ".join(table.cost_devices)
        lines.append(f"{names[0].upper()}{names[1:]}: each measured by itself on {devices}.")
    return lines


def _progress(table: Comparison) -> list[str]:
    """The cells that are not done, that have no result, and that failed."""
    lines = []
    if table.progress and table.progress[0] < table.progress[1]:
        lines.append("Unfinished: {} of the matrix's {} cells are done.".format(*table.progress))
    if table.missing_methods:
        lines.append(f"Without a result so far: {', '.join(table.missing_methods)}.")
    if table.failures:
        lines.append(f"Failed at the last try: {', '.join(table.failures)}; see failures/.")
    return lines


def _statistics(table: Comparison) -> list[str]:
    """The differences, and how their uncertainty was computed."""
    contrasts = table.contrasts
    if not contrasts.differences:
        return []
    names = dict.fromkeys(contrasts.baselines.values())
    baselines = " or ".join(names) if len(names) < 4 else "the method that the matrix names"
    text = f"Δ: difference from the mean of {baselines}, in points"
    if contrasts.residual is None:
        return [f"{text}. Every cell has one seed, so that no interval can be given."]
    std, dof = contrasts.residual
    lines = [
        f"{text}, with its {CONFIDENCE:.0%} confidence interval: Student's t with the standard "
        f"deviation of seeds pooled over all cells, {std:.2f} points with {dof} degrees of freedom."
    ]
    if contrasts.overall:
        uneven = any(d.pairs < len(table.columns) for d in contrasts.overall.values())
        lines.append(
            f"Δ of all pairs: mean of the pairs' Δ{', (n): of n pairs' * uneven}. Pairs are taken "
            "as fixed: the interval says nothing of other networks."
        )
    if contrasts.corrected:
        exception = ", except on the primary contrast," if contrasts.primary else ""
        lines.append(
            f"Intervals are not corrected for their number; the verdicts below{exception} are, by "
            f"Holm's method over {contrasts.corrected} differences, at {1 - CONFIDENCE:.0%}."
        )
    if contrasts.primary:
        method, primary = contrasts.primary
        pairs = "" if len(table.columns) == 1 else f", mean of {primary.pairs} pairs"
        words = _VERDICTS[primary.verdict or "open"].format(contrasts.baselines[method])
        p = "p < 0.001" if primary.p is None or primary.p < 0.001 else f"p = {primary.p:.3f}"
        lines.insert(
            1,
            f"Primary contrast, named in the matrix and not corrected: {method} is {words}{pairs}: "
            f"{difference_text(primary)}, {p}.",
        )
    return lines


def difference_text(difference: Difference) -> str:
    """Points with their interval: `+0.39 [−0.06, +0.85]`."""
    text = f"{difference.points:+.2f}"
    if difference.low is not None and difference.high is not None:
        text += f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return text.replace("-", "−")


def verdicts(table: Comparison) -> list[str]:
    """Methods by verdict: of each pair of networks, and of all where they are several."""
    contrasts = table.contrasts
    by_column = {
        column: {m: d for (c, m), d in contrasts.differences.items() if c == column}
        for column in table.columns
    }
    if len(table.columns) == 1:
        return [f"{p[0].upper()}{p[1:]}." for p in _phrases(table, by_column[table.columns[0]])]
    places = {f"On {table.column_heading(column)}": found for column, found in by_column.items()}
    places["Over all pairs"] = dict(contrasts.overall)
    phrases = {place: "; ".join(_phrases(table, found)) for place, found in places.items()}
    return [f"{place}, {text}." for place, text in phrases.items() if text]


def _phrases(table: Comparison, differences: Mapping[str, Difference]) -> list[str]:
    """Methods grouped by verdict and by baseline."""
    phrases = []
    for verdict, words in _VERDICTS.items():
        groups: dict[str, list[str]] = {}
        for method, difference in differences.items():
            if difference.verdict == verdict:
                baseline = table.contrasts.baselines[method]
                groups.setdefault(words.format(baseline), []).append(method)
        phrases += [f"{group}: {', '.join(methods)}" for group, methods in groups.items()]
    return phrases
