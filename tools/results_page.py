"""Put the tables of committed results into docs/results.md.

    python tools/results_page.py

Between the marks `<!-- cktf table FOLDER -->` and `<!-- end -->` stands the output of `cktf table
FOLDER`; between `<!-- verdicts FOLDER BASELINE -->` and `<!-- end -->` the verdicts of `cktf table
FOLDER --baseline BASELINE`.
"""

import re
from pathlib import Path

from cktf.bench import compare, markdown
from cktf.bench.captions import verdicts

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
TABLE = re.compile(r"(<!-- cktf table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
VERDICTS = re.compile(r"(<!-- verdicts (\S+) (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(text: str) -> str:
    """Replace everything between marks by its present text."""

    def table(mark: re.Match[str]) -> str:
        return f"{mark[1]}{_with_paragraphs(markdown(compare(ROOT / mark[2])))}{mark[3]}"

    def lines(mark: re.Match[str]) -> str:
        texts = verdicts(compare(ROOT / mark[2], mark[3]))
        return f"{mark[1]}{''.join(f'- {text}{chr(10)}' for text in texts)}{mark[4]}"

    return VERDICTS.sub(lines, TABLE.sub(table, text))


def _with_paragraphs(table: str) -> str:
    """Make each note below a table an item of a list."""
    return re.sub(r"^(?=[^|\n])", "- ", table, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(fill_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
