"""Put the tables of committed results into the README.

    python tools/readme_results.py

Between the two marks of each matrix stands what `cktf table` makes of its folder in results/.
"""

import re
from pathlib import Path

from cktf.bench import compare, markdown

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARKED = re.compile(r"(<!-- cktf table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The README with its tables anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}{markdown(compare(ROOT / found[2]))}{found[3]}"

    return MARKED.sub(table, text)


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
