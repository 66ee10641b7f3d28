"""What stands below a table, in words."""

from collections.abc import Mapping

from cktf.bench.statistics import LEVEL, Difference
from cktf.bench.tables import Column, Comparison

_VERDICTS = {
    "ahead": "ahead of {}",
    "behind": "behind {}",
    "open": "not told apart from {}",
    "single": "one seed in common, no interval",
}


def notes(table: Comparison, marks: str) -> list[str]:
    """Conditions, verdicts and sources.

    Args:
        table: that they are of.
        marks: how the best of a column are marked.
    """
    # It may be of several lines; in LaTeX each note is one comment.
    about = " ".join(table.about.split()).removesuffix(".")
    lines = [f"{about}. " if about else ""]
    lines[0] += f"Top-1 %, {_of_seeds(table)}; {marks}. {table.conditions}."
    lines += _unfinished(table)
    if table.mixed:
        lines.append(
            f"On {', '.join(map(table.heading, table.mixed))}, students had several teachers, and "
            "their differences are not of methods alone."
        )
    if table.mixed_engines:
        parts = "; ".join(f"{n} ({', '.join(v)})" for n, v in table.mixed_engines.items())
        lines.append(
            f"Mixed: these cells were not all computed alike, and small differences may come from "
            f"that. They differ in {parts}."
        )
    if "difference" in table.shown:
        lines.append(f"Δ: points over {_compared(table)} on the seeds that both have")
        if table.has_intervals:
            lines[-1] += f", and the {LEVEL:.0%} confidence interval of its mean (Student's t)"
        lines[-1] += "."
        if "overall" in table.shown:
            lines.append("Δ of all pairs: mean of the Δ of each pair, and its interval over pairs")
            uneven = any(d.pairs < len(table.columns) for d in table.overall.values())
            lines[-1] += "; (n): of n pairs." if uneven else "."
        lines += verdicts(table)
    if any(table.is_published(column, table.methods) for column in table.columns):
        lines.append("Published: Zhao, Chen, Zhao, ICASSP 2023, Table 1; not measured here.")
    costs = [
        *(["time of a step over that of the student alone"] if "time" in table.shown else []),
        *(["peak memory"] if "memory" in table.shown else []),
    ]
    if costs:
        told = " and ".join(costs)
        on = ", ".join(table.cost_devices)
        lines.append(f"{told[0].upper()}{told[1:]}: each measured by itself on {on}.")
    return lines


def _unfinished(table: Comparison) -> list[str]:
    """What the matrix has and the table has not."""
    progress = table.progress
    if progress is None or progress.done == progress.planned:
        return []
    told = [f"Unfinished: {progress.done} of the matrix's {progress.planned} cells are done"]
    if progress.columns:
        told.append(f"pairs without any: {', '.join(map(table.heading, progress.columns))}")
    if progress.methods:
        told.append(f"methods without any: {len(progress.methods)}")
    return ["; ".join(told) + "."]


def _of_seeds(table: Comparison) -> str:
    """What an entry is, and what a number in brackets behind it says."""
    told = "of one seed"
    if table.seeds > 1:
        told = f"mean ± standard deviation over {table.seeds} seeds"
    return told if table.is_even else f"{told}, or over (n)"


def _compared(table: Comparison) -> str:
    """What differences are from, in words."""
    return " or ".join(dict.fromkeys(_base(table, method) for method in table.bases))


def _base(table: Comparison, method: str) -> str:
    return f"the same without {table.added}" if table.added else table.bases[method]


def verdicts(table: Comparison) -> list[str]:
    """In words: of each pair of networks by itself, and of all where they are several."""
    if len(table.columns) == 1:
        phrases = _phrases(table, _differences(table, table.columns[0]))
        return [f"{phrase[0].upper()}{phrase[1:]}." for phrase in phrases]
    several = {m: d for m, d in table.overall.items() if d.pairs > 1}
    told = {f"On {table.heading(c)}": _differences(table, c) for c in table.columns}
    told["Over all pairs"] = several
    found = {where: "; ".join(_phrases(table, d)) for where, d in told.items()}
    return [f"{where}, {phrases}." for where, phrases in found.items() if phrases]


def _differences(table: Comparison, column: Column) -> dict[str, Difference]:
    found = {method: table.entries[column, method].difference for method in table.methods}
    return {method: difference for method, difference in found.items() if difference is not None}


def _phrases(table: Comparison, differences: Mapping[str, Difference]) -> list[str]:
    """Methods by verdict and by what they are compared with."""
    phrases = []
    for verdict, words in _VERDICTS.items():
        groups: dict[str, list[str]] = {}
        for method, difference in differences.items():
            if difference.verdict == verdict:
                groups.setdefault(words.format(_base(table, method)), []).append(method)
        for group, methods in groups.items():
            every = verdict == "single" and len(methods) == len(differences) > 1
            phrases.append(f"{group}: {'all' if every else ', '.join(methods)}")
    return phrases
