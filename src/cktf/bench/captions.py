"""What stands below a table, in words."""

from cktf.bench.statistics import LEVEL
from cktf.bench.tables import Comparison


def notes(table: Comparison, marks: str) -> list[str]:
    """Conditions, verdicts and sources.

    Args:
        table: that they are of.
        marks: how the best of a column are marked.
    """
    counts = {len(e.values) for e in table.entries.values() if e.values}
    lines = [f"{table.about}. " if table.about else ""]
    lines[0] += f"Top-1 %, mean ± standard deviation over seeds; {marks}. {table.conditions}."
    if len(counts) > 1:
        lines.append(f"Unfinished: from {min(counts)} to {max(counts)} seeds for each entry.")
    if any(e.difference for e in table.entries.values()):
        lines.append(
            f"Δ: points over {_compared(table)} with the same seeds, and the {LEVEL:.0%} "
            "confidence interval of its mean (Student's t)."
        )
        lines += _verdicts(table)
    if any(table.is_published(column) for column in table.columns):
        lines.append("Published: Zhao, Chen, Zhao, ICASSP 2023, Table 1; not measured here.")
    if "time" in table.shown:
        lines.append("Time of a step over that of the student alone; peak memory; by themselves.")
    return lines


def _compared(table: Comparison) -> str:
    """What differences are from, in words."""
    if table.added:
        return f"the same without {table.added}"
    return " or ".join(dict.fromkeys(table.bases.values()))


def _verdicts(table: Comparison) -> list[str]:
    """In words, by the interval over all columns."""
    told = {"ahead": "Ahead of", "behind": "Behind", "open": "Not told apart from"}
    lines = []
    for verdict, words in told.items():
        methods: dict[str, list[str]] = {}
        for method, difference in table.overall.items():
            if difference.verdict == verdict:
                base = _compared(table) if table.added else table.bases[method]
                methods.setdefault(base, []).append(method)
        lines += [f"{words} {base}: {', '.join(names)}." for base, names in methods.items()]
    return lines
