"""Put the counts of `make soak` into docs/reliability.md, between its two marks."""

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from measure import table

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "results" / "reliability"
MARKED = re.compile(r"(<!-- reliability -->\n).*?(<!-- end -->)", re.DOTALL)

CASES = {
    "cktf+kd": "CKTF+KD",
    "init": "AB and FT with their first phases, and KD",
    "queue": "CKTF with a queue",
    "gloo": "the objective in two gloo processes",
    "transfer": "a whole `cktf transfer`",
}


def kills() -> str:
    """Runs killed, by what they were."""
    rows = [
        [
            CASES[found["case"]], found["kills"], found["runs_finished"], len(found["different"]),
            f"{found['seconds_lost_mean']:.2f}", f"{found['seconds_lost_most']:.2f}",
        ]
        for found in _read("kills")
    ]  # fmt: skip
    header = ["killed", "kills", "runs ended", "different", "seconds lost, mean", "most"]
    return table(header, rows)


def inputs() -> str:
    """Inputs made, by what they were."""
    counts = _read("fuzz")["cases"]
    rows = [[name, *found.values(), sum(found.values())] for name, found in counts.items()]
    columns = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    return table(["input", "accepted", "refused", "made"], [*rows, ["all", *columns]])


def soaks() -> str:
    """Memory of long training."""
    soaked = {"a bank": _read("memory-cktf"), "a queue": _read("memory-queue")}
    rows = [
        [
            name, f"{found['minutes']:.0f}", f"{found['steps']:,}", found["second_epoch_mb"],
            found["last_quarter_mb"], f"{found['growth_percent']:.2f}",
        ]
        for name, found in soaked.items()
    ]  # fmt: skip
    header = ["CKTF+KD with", "minutes", "steps", "MiB, 2nd epoch", "last quarter", "growth %"]
    return table(header, rows)


def written(page: str) -> str:
    """The page with its tables anew."""
    cost = _read("overhead")
    text = (
        f"{kills()}\n\n{inputs()}\n\n{soaks()}\n\n"
        f"Saving every {cost['interval_minutes']:.0f} minutes took {cost['overhead_percent']} % of "
        f"a run of {cost['seconds']:.0f} s.\n"
    )
    return MARKED.sub(lambda found: f"{found[1]}{text}{found[2]}", page)


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
