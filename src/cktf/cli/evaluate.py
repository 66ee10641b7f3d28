"""`cktf evaluate`: the accuracy of a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from cktf.cli.command import reports_errors
from cktf.cli.options import DataDirOption, DataOption, DebugOption, TrustCodeOption


@reports_errors
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: DataOption = None,
    data_dir: DataDirOption = None,
    trust_code: TrustCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Classify the test images of the run's data set, or of another."""
    from cktf.workflows import evaluate as evaluate_run

    where = None if data_dir is None else str(data_dir)
    accuracy, name = evaluate_run(run, data, where, trust_code=trust_code)
    print(
        f"{name}: top-1 {accuracy.top1:.2f} % ± {accuracy.standard_error:.2f}, top-5 "
        f"{accuracy.top5:.2f} % of {accuracy.samples:,} test images (± the standard error)"
    )
