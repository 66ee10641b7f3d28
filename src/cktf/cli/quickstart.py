"""`cktf quickstart`: all of cktf on a small real data set, in minutes."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cktf.cli.command import make_command, print_table


@make_command
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder of the four runs.")] = Path(
        "runs/quickstart"
    ),
) -> None:
    """Compare KD and CKTF+KD on a small data set in minutes."""
    from cktf.workflows.quickstart import METHODS, run_quickstart

    print("A teacher, then the same student three times with the same budget. Data: fashion-mini,")
    print("10,000 training and 5,000 test images of Fashion-MNIST, from inside the package.")
    start = time.monotonic()
    summaries = run_quickstart(out)
    elapsed = time.monotonic() - start
    teacher, alone, *others = summaries
    rows = [
        (
            f"{summary['student']} {role}",
            f"{summary['student_parameters']:,}",
            f"{teacher['student_parameters'] / summary['student_parameters']:.2f}x",
            f"{summary['test_top1']:.2f}",
            f"{summary['seconds']:.0f}",
        )
        for role, summary in zip(("teacher", *METHODS.values()), summaries, strict=True)
    ]
    print_table(["network", ">parameters", ">compression", ">top-1 %", ">seconds"], rows)
    error = max(summary["test_standard_error"] for summary in summaries[1:])
    gains = [summary["test_top1"] - alone["test_top1"] for summary in others]
    print(
        f"On {alone['test_images']:,} test images one standard error of an accuracy is about "
        f"{error:.2f} points, and this is one seed.\n"
        f"Against the student alone: KD {gains[0]:+.2f}, CKTF+KD {gains[1]:+.2f} points.\n"
        f"{elapsed:.0f} s in all. Runs: {out}. Next: cktf distill --help"
    )
