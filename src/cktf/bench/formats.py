"""A comparison as Markdown, CSV and LaTeX."""

import csv
import io
import unicodedata
from collections.abc import Callable, Sequence

from cktf.bench.captions import notes
from cktf.bench.statistics import LEVEL, Difference
from cktf.bench.tables import Column, Comparison, Entry

PUBLISHED = "published"
_NONE = "–"


def markdown(table: Comparison) -> str:
    """For a README: best in bold, second in italics."""

    def mark(text: str, rank: int) -> str:
        return {1: f"**{text}**", 2: f"*{text}*"}.get(rank, text)

    heads, rows = _grid(table, mark, " ± ", _markdown)
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(heads) - 1))
    below = notes(table, "**best**, *second* of a column")
    return "\n".join([*lines, "", *below]) + "\n"


def latex(table: Comparison) -> str:
    """For a paper, with booktabs: best in bold, second underlined."""

    def mark(text: str, rank: int) -> str:
        return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(rank, text)

    heads, rows = _grid(table, mark, r" $\pm$ ", _latex)
    # Behind a row, TeX takes a star or a bracket for an option of its end.
    body = ["{}" * row[0].startswith(("*", "[")) + " & ".join(row) + r" \\" for row in rows]
    head = " & ".join(heads) + r" \\"
    below = [f"% {line}" for line in notes(table, "bold: best, underlined: second of a column")]
    return "\n".join(
        [
            *below,
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule", head, r"\midrule", *body, r"\bottomrule",
            r"\end{tabular}", "",
        ]
    )  # fmt: skip


def _greek(letter: str) -> str:
    """LaTeX's command for a letter."""
    name = unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA").lower()
    return f"\\{name.capitalize() if letter.isupper() else name}"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
        "_": r"\_", "#": r"\#", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
        "<": "$<$", ">": "$>$", "|": "$|$", "→": r"$\to$", "×": r"$\times$", "±": r"$\pm$",
        _NONE: "--", "−": "$-$",
    }
    # As Unicode calls them, but for one: α to ω, and those of Α to Ω that look like no other.
    | {letter: rf"${_greek(letter)}$" for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"}
)  # fmt: skip


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _markdown(text: str) -> str:
    """As it stands in a row, which a bar would break."""
    return text.replace("|", r"\|")


def csv_rows(table: Comparison) -> str:
    """A row for each method and pair, with the value of every seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["data", "teacher", "student", "method", "n", "mean", "sd", "rank", "baseline",
         "difference", "low", "high", "shared_seeds", "relative_time", "peak_memory_mb", PUBLISHED,
         "by_seed"]
    )  # fmt: skip
    for (column, method), entry in table.entries.items():
        if entry.mean is not None:
            d = entry.difference
            seeds = " ".join(f"{seed}:{top1:.4f}" for seed, top1 in sorted(entry.values.items()))
            writer.writerow(
                [*column, method, len(entry.values), f"{entry.mean:.4f}",
                 _plain(entry.deviation), entry.rank or "", entry.base or "",
                 *((_plain(d.mean), _plain(d.low), _plain(d.high), d.pairs) if d else [""] * 4),
                 _plain(entry.relative_time), _plain(entry.memory_mb), _plain(entry.published),
                 seeds]
            )  # fmt: skip
    return out.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _grid(
    table: Comparison,
    mark: Callable[[str, int], str],
    plus_minus: str,
    escape: Callable[[str], str],
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows, as text of some form."""
    heads, shown = ["method"], table.shown
    for column in table.columns:
        added = f"+{table.added}", PUBLISHED
        heads += _cells(
            table, column, (table.heading(column), PUBLISHED), added, _difference_head(table)
        )
    heads += ["Δ of all pairs"] if "overall" in shown else []
    heads += ["time ×"] if "time" in shown else []
    heads += ["memory MiB"] if "memory" in shown else []
    rows = [_teacher_row(table, shown)]
    for method in _rows(table):
        row, own = [method], [table.entries[column, method] for column in table.columns]
        last = f"{method}+{table.added}" if table.added else method
        for column, entry in zip(table.columns, own, strict=True):
            ending = table.entries.get((column, last))
            figures = [
                (
                    _accuracy(e, mark, plus_minus, table.seeds),
                    _number(e.published if e else None, 2),
                )
                for e in (entry, ending)
            ]
            difference = _difference(ending.difference if ending else None, table.seeds)
            row += _cells(table, column, figures[0], figures[1], escape(difference))
        overall = _difference(table.overall.get(last), len(table.columns))
        row += [escape(overall)] if "overall" in shown else []
        times = [e.relative_time for e in own if e.relative_time is not None]
        memory = [e.memory_mb for e in own if e.memory_mb is not None]
        row += [_range(times, 2)] if "time" in shown else []
        row += [_range(memory, 0)] if "memory" in shown else []
        rows.append([escape(row[0]), *(cell.replace(_NONE, escape(_NONE)) for cell in row[1:])])
    rows[0] = [escape(cell) for cell in rows[0]]
    return [escape(head) for head in heads], rows


def _cells(
    table: Comparison, column: Column, own: tuple[str, ...], added: tuple[str, ...], change: str
) -> list[str]:
    """One pair's part of a row.

    Args:
        table: of which.
        column: the pair.
        own: of the method, and as published.
        added: of the same with what is added, and as published; right behind what it is of.
        change: the difference.
    """
    rows = _rows(table)
    beside = [method for method in table.methods if method not in rows]
    change_of = [change] if "difference" in table.shown else []
    own = own if table.is_published(column, rows) else own[:1]
    if not table.added:
        return [own[0], *change_of, *own[1:]]
    added = added if table.is_published(column, beside) else added[:1]
    return [*own, *added, *change_of]


def _rows(table: Comparison) -> list[str]:
    """Methods that have a row: all, but for those that stand beside another."""
    beside = {f"{method}+{table.added}" for method in table.methods} if table.added else set()
    return [method for method in table.methods if method not in beside]


def _teacher_row(table: Comparison, shown: set[str]) -> list[str]:
    row = ["teacher"]
    for column in table.columns:
        top1, paper = table.teachers[column], table.published_teachers[column]
        row += _cells(table, column, (_number(top1, 2), _number(paper, 2)), ("", ""), "")
    return row + [""] * len(shown - {"difference"})


def _accuracy(
    entry: Entry | None, mark: Callable[[str, int], str], plus_minus: str, usual: int
) -> str:
    if entry is None or entry.mean is None:
        return _NONE
    text = f"{entry.mean:.2f}"
    if entry.deviation is not None:
        text += f"{plus_minus}{entry.deviation:.2f}"
    return mark(text, entry.rank) + _count(len(entry.values), usual)


def _difference(found: Difference | None, usual: int) -> str:
    if found is None:
        return ""
    text = f"{found.mean:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" [{found.low:+.2f}, {found.high:+.2f}]"
    return text.replace("-", "−") + _count(found.pairs, usual)


def _count(number: int, usual: int) -> str:
    """From how many a mean is, where it is not from as many as others."""
    return "" if number == usual else f" ({number})"


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"


def _range(values: Sequence[float], digits: int) -> str:
    """One number, or from the smallest to the largest over the pairs."""
    if not values:
        return _NONE
    low, high = (f"{v:,.{digits}f}" for v in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _difference_head(table: Comparison) -> str:
    """With what all are compared with, if that is one method."""
    bases = set(table.bases.values())
    base = f" {bases.pop()}" if len(bases) == 1 and not table.added else ""
    return f"Δ{base} [{LEVEL:.0%}]" if table.has_intervals else f"Δ{base}"
