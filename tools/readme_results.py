"""Put the table of committed results into the README.

    python tools/readme_results.py [--check]

Between the two marks of each matrix stands what `cktf table` makes of its folder in results/. With
`--check` nothing is written; the exit code is 1 where the README does not say what the results say.
"""

import argparse
import re
import sys
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


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if check:
        if after != before:
            print("README.md: run python tools/readme_results.py", file=sys.stderr)
        return int(after != before)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
