"""The notes below a table, in words."""

from collections.abc import Mapping

from cktf.bench.statistics import CONFIDENCE, Difference
from cktf.bench.tables import Comparison

_VERDICTS = {
    "ahead": "ahead of {}",
    "behind": "behind {}",
    "open": "not told apart from {}",
}


def notes(table: Comparison) -> list[str]:
    """Conditions, statistics, verdicts and sources, a line each."""
    about = " ".join(table.about.split()).removesuffix(".")
    entry = "one seed"
    if table.seeds > 1:
        entry = f"mean ± standard deviation over {table.seeds} seeds"
    if {len(e.values) for e in table.entries.values() if e.values} != {table.seeds}:
        entry += ", or over (n)"
    lines = [
        f"{f'{about}. ' if about else ''}Top-1 %, {entry}; **best**, *second* of a column. "
        f"{table.conditions}.",
    ]
    if table.progress and table.progress[0] < table.progress[1]:
        lines.append("Unfinished: {} of the matrix's {} cells are done.".format(*table.progress))
    if table.mixed_teachers:
        lines.append(
            f"On {', '.join(map(table.column_heading, table.mixed_teachers))}, students had "
            "several teachers, and their differences are not of methods alone."
        )
    if table.mixed_engines:
        parts = "; ".join(f"{n} ({', '.join(v)})" for n, v in table.mixed_engines.items())
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
