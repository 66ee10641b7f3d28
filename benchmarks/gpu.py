"""Check cktf on a GPU, and measure its steps there, in one command of at most nine minutes.

    python benchmarks/gpu.py [--device cuda] [--out gpu.json] [--seconds 480] [--only 2,3,5]
    python benchmarks/gpu.py --table gpu.json

Needs no network and no installed cktf: `PYTHONPATH=src python benchmarks/gpu.py` from the
repository's root. Every check prints one line as it ends (`ok`, `OFF` where figures are off,
`error`, `skipped`), and is in the JSON from then on. With `--device cpu` everything runs that a CPU
can, at small sizes. Exits with 1 unless all checks are ok or skipped. `--table` prints the section
of docs/performance.md.
"""

import argparse
import json
import platform
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_checks.findings import ERROR, OFF
from gpu_checks.schedule import Check, run_checks
from gpu_checks.tables import documentation, line, summary

# In the order in which each lane runs them; what decides whether the rest means anything first.
CHECKS = tuple(
    Check(number, name, f"gpu_checks.{function}", seconds, lane)
    for number, name, function, seconds, lane in (
        (2, "functions against the CPU", "functions:check_functions", 60, "parity"),
        (3, "objectives against the CPU", "objectives:check_objectives", 90, "parity"),
        (5, "no synchronization", "synchronization:check_synchronization", 75, "parity"),
        (4, "negatives on the device", "sampler:check_sampler", 10, "parity"),
        (6, "networks, evaluation", "networks:check_networks", 25, "parity"),
        (11, "runs that fail", "students:check_failing_runs", 20, "parity"),
        (9, "interleaved students", "students:check_interleaved", 25, "parity"),
        (1, "twenty steps", "command_line:check_twenty_steps", 40, "commands"),
        (8, "stopped and killed runs", "command_line:check_resumed_runs", 90, "commands"),
        (7, "commands", "command_line:check_commands", 100, "commands"),
        (12, "two processes", "processes:check_processes", 40, "commands"),
        (13, "speed of steps", "speed:check_speed", 125, "timing"),
        (14, "epochs over bare steps", "speed:check_epochs", 40, "timing"),
        (10, "compiled networks", "students:check_compiled", 60, "timing"),
    )
)


def main() -> None:
    """Parse, run, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=480.0, help="for all checks")
    parser.add_argument("--only", default="", help="numbers of checks, joined by commas")
    parser.add_argument("--table", type=Path, help="print a record as a section of the docs")
    args = parser.parse_args()
    if args.table is not None:
        print(documentation(json.loads(args.table.read_text()), CHECKS))
        return
    only = [int(number) for number in args.only.split(",") if number]
    if unknown := set(only) - {check.number for check in CHECKS}:
        parser.error(f"there is no check {min(unknown)}")
    chosen = [check for check in CHECKS if not only or check.number in only]
    results = run(chosen, args.device, args.seconds, args.out)
    print(f"\n{summary(results, CHECKS)}")
    sys.exit(any(r["status"] in (OFF, ERROR) for r in results["checks"].values()))


def run(checks: list[Check], device: str, seconds: float, out: Path) -> dict[str, Any]:
    """Run the checks; print a line and write the record as each ends."""
    lock = threading.Lock()
    results: dict[str, Any] = {"machine": machine(device), "checks": {}}
    began = time.monotonic()

    def on_record(check: Check, record: dict[str, Any]) -> None:
        with lock:
            results["checks"][str(check.number)] = record
            results["seconds"] = round(time.monotonic() - began, 1)
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(line(check, record), flush=True)

    print(results["machine"], flush=True)
    run_checks(checks, device, seconds, on_record)
    return results


def machine(device: str) -> str:
    """GPU or CPU, and versions."""
    name = platform.machine()
    if device == "cuda":
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA GPU"
    return f"{name}, Python {platform.python_version()}, torch {version('torch')}"


if __name__ == "__main__":
    main()
