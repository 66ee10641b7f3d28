"""The record of all checks as tables, for the terminal and for docs/performance.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from measure import table

from gpu_checks.schedule import Check

Results = Mapping[str, Any]
NOT_MEASURED = "not yet measured"
_STEP_COLUMNS = {
    "method": "step", "batch": "B", "mode": "mode", "ms": "ms", "host_ms": "host ms",
    "over_floor": "over floor", "launches": "launches", "kernels": "kernels",
    "busy_percent": "busy %", "peak_mib": "peak MiB", "images_per_second": "images/s",
}  # fmt: skip
_EPOCH_COLUMNS = {
    "method": "method", "batch": "B", "bare_ms": "bare step ms", "epoch_ms": "epoch's step ms",
    "images_per_second": "images/s", "share_percent": "% of bare",
}  # fmt: skip
SPEED, EPOCHS = "13", "14"


def line(check: Check, record: Results) -> str:
    """The line of a check that ended."""
    return f"{record['status']:8}{check.number:2} {check.name}: {figure(record)}"


def figure(record: Results) -> str:
    """What a check found, in a few words."""
    parts = [f"{k} {v[0]} ({_shorten(v[1], 60)})" for k, v in record.get("worst", {}).items()]
    parts += [f"{k} {v}" for k, v in record.get("figures", {}).items()]
    for kind in ("failures", "errors", "left_out"):
        if found := record.get(kind):
            parts.append(f"{len(found)} {kind.replace('_', ' ')}")
    cases = record.get("cases", 0)
    return "; ".join([f"{cases} cases", *parts, f"{record.get('seconds', 0):.0f} s"])


def problems(results: Results, width: int = 300, count: int = 6) -> str:
    """Failures and errors of all checks, cut to what a terminal keeps."""
    lines = []
    for number, record in results["checks"].items():
        for kind in ("failures", "errors", "left_out"):
            found = record.get(kind, [])
            lines += [f"{number} {kind}: {_shorten(text, width)}" for text in found[:count]]
            lines += [f"{number} {kind}: … {len(found) - count} more"] * (len(found) > count)
    return "\n".join(lines)


def _shorten(text: str, width: int) -> str:
    """The beginning, which names the case, and the end of a text, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width // 3]} … {text[-(2 * width) // 3 :]}"


def speed_tables(results: Results) -> list[str]:
    """Steps, and epochs over bare steps; empty where they were not measured."""
    found = []
    for number, columns in ((SPEED, _STEP_COLUMNS), (EPOCHS, _EPOCH_COLUMNS)):
        if rows := results["checks"].get(number, {}).get("rows"):
            cells = [[row.get(name, "") for name in columns] for row in rows]
            found.append(table(list(columns.values()), cells))
    return found


def summary(results: Results, checks: Sequence[Check]) -> str:
    """All that a terminal shows at the end; shorter than 12,000 characters."""
    found = results["checks"]
    shown = [line(c, found[str(c.number)])[:230] for c in checks if str(c.number) in found]
    parts = [problems(results)[:3500], *speed_tables(results), str(results["machine"]), *shown]
    return "\n\n".join([*parts[: -len(shown)], "\n".join(shown)])


def documentation(results: Results | None, checks: Sequence[Check]) -> str:
    """The section of docs/performance.md."""
    found = {} if results is None else results["checks"]
    rows = [[f"{c.number} {c.name}", *_result(found.get(str(c.number)))] for c in checks]
    text = (
        "## On a GPU\n\n`python benchmarks/gpu.py` takes at most eight minutes on one GPU, without "
        "a network. It compares every\nfunction, objective and phase with the CPU, looks for steps "
        "that wait for the GPU, repeats and resumes runs\nbit for bit, and measures steps and "
        "epochs: resnet32x4 to resnet8x4 in bfloat16, N=50,000, K=16,384. `floor`\nis the student "
        "on labels with the teacher's forward pass. It writes `gpu.json`; in "
        "`results/performance`, this\npage shows it. `--table gpu.json` prints this section."
    )
    machine = f"Machine: {NOT_MEASURED if results is None else results['machine']}."
    parts = [text, machine, table(["check", "result", "figures"], rows)]
    if results is not None and "note" in results:
        parts.append(f"Commit {results['commit']}. {results['note']}")
    steps = [] if results is None else speed_tables(results)
    return "\n\n".join([*parts, *(steps or [f"Steps and epochs: {NOT_MEASURED}."])])


def _result(record: Results | None) -> tuple[str, str]:
    return (NOT_MEASURED, "") if record is None else (record["status"], figure(record))
