"""Put the tables of committed results into the README.

    python tools/readme_results.py

Between two marks stands what `cktf table` makes of a folder in results/, or what it says in words
beside each of some methods, as with `--baseline`.
"""

import re
from pathlib import Path

from cktf.bench import compare, markdown
from cktf.bench.captions import verdicts

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- cktf table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORDS = re.compile(r"(<!-- in words (\S+) (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The README with its tables anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}{markdown(compare(ROOT / found[2]))}{found[3]}"

    def words(found: re.Match[str]) -> str:
        lines = [
            f"- {line}\n"
            for baseline in found[3].split()
            for line in verdicts(compare(ROOT / found[2], baseline))
        ]
        return f"{found[1]}{''.join(lines)}{found[4]}"

    return WORDS.sub(words, TABLE.sub(table, text))


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
