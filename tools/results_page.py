"""Put the tables of committed results into docs/results.md and README.md.

    python tools/results_page.py

Between marks and `<!-- end -->` stand: for `<!-- cktf table FOLDER -->`, that command's output;
for `<!-- verdicts FOLDER BASELINE -->`, verdicts of `cktf table FOLDER --baseline BASELINE`; for
`<!-- four rows FOLDER -->`, the student alone, KD, CRD+KD and CKTF+KD on the first pair.
docs/accuracy-time.svg shows accuracy and time of all methods.
"""

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cktf.bench import Comparison, compare, markdown
from cktf.bench.formats import difference_text, verdicts

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
TABLE = re.compile(r"(<!-- cktf table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ROWS = re.compile(r"(<!-- four rows (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
FOUR = {
    "alone": "student alone",
    "KD (1, 1)": "KD (1, 1)",
    "CRD+KD": "CRD+KD",
    "CKTF+KD": "CKTF+KD",
}
PICTURE = ROOT / "docs" / "accuracy-time.svg"
VERDICTS = re.compile(r"(<!-- verdicts (\S+) (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(text: str) -> str:
    """Replace everything between marks by its present text."""

    def table(mark: re.Match[str]) -> str:
        return f"{mark[1]}{_with_paragraphs(markdown(compare(ROOT / mark[2])))}{mark[3]}"

    def lines(mark: re.Match[str]) -> str:
        texts = verdicts(compare(ROOT / mark[2], mark[3]))
        return f"{mark[1]}{''.join(f'- {text}{chr(10)}' for text in texts)}{mark[4]}"

    def rows(mark: re.Match[str]) -> str:
        return f"{mark[1]}{four_rows(compare(ROOT / mark[2]))}{mark[3]}"

    return ROWS.sub(rows, VERDICTS.sub(lines, TABLE.sub(table, text)))


def four_rows(table: Comparison) -> str:
    """Four methods on the first pair, as Markdown: accuracy, gains, and time relative to KD."""
    column = table.columns[0]
    entries = {method: table.entries[column, method] for method in FOUR}
    alone, kd = entries["alone"], entries["KD (1, 1)"]
    lines = [
        "| trained by | top-1 % | over alone | over KD (1, 1), 95 % interval "
        "| time of a step, KD = 1 |",
        "|---|---:|---:|---:|---:|",
    ]
    for method, name in FOUR.items():
        entry = entries[method]
        assert entry.mean is not None
        assert alone.mean is not None
        gain = "" if entry is alone else f"+{entry.mean - alone.mean:.2f}"
        over_kd = (
            "" if entry is kd or entry.difference is None else difference_text(entry.difference)
        )
        time = (entry.relative_time or 1) / (kd.relative_time or 1)
        cells = [name, f"{entry.mean:.2f} ± {entry.std:.2f}", gain, over_kd, f"{time:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nThe teacher has {table.teachers[column]:.2f} %.\n"


def draw(table: Comparison) -> None:
    """Draw accuracy against the time of a step on the first pair, with names beside the points."""
    column = table.columns[0]
    points = {
        method: (entry.relative_time, entry.mean, entry.std)
        for method in table.methods
        if (entry := table.entries[column, method]).relative_time and entry.mean is not None
    }
    names = sorted(points, key=lambda method: points[method][1])
    low, high = points[names[0]][1] - 0.5, points[names[-1]][1] + 0.4
    right = max(time for time, _, _ in points.values()) + 0.35
    # Text stays text, and the file is the same on every run.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cktf", "font.size": 9}):
        figure = Figure(figsize=(7.5, 3.8), layout="constrained")
        axis = figure.subplots()
        for rank, method in enumerate(names):
            time, mean, std = points[method]
            color = "#c1272d" if "CKTF" in method else "#30475e"
            axis.errorbar(time, mean, std, fmt="o", ms=4, c=color)
            height = low + (rank + 0.5) * (high - low) / len(names)
            line = {"arrowstyle": "-", "color": color, "lw": 0.4}
            axis.annotate(
                f"{method}  {mean:.1f}", (time, mean), (right, height), color=color,
                fontsize=8, va="center", annotation_clip=False, arrowprops=line,
            )  # fmt: skip
        axis.set(xlim=(0.8, right - 0.1), ylim=(low, high), ylabel="top-1 %, mean ± sd of 3 seeds")
        axis.set(xlabel="time of a step / student alone", title=table.column_heading(column))
        axis.grid(alpha=0.3)
        figure.savefig(PICTURE, metadata={"Date": None})


def _with_paragraphs(table: str) -> str:
    """Make each note below a table an item of a list."""
    return re.sub(r"^(?=[^|\n])", "- ", table, flags=re.MULTILINE)


if __name__ == "__main__":
    for page in (PAGE, ROOT / "README.md"):
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    draw(compare(ROOT / "results" / "cpu-cifar10"))
