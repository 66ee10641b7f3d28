"""`cktf evaluate`: the accuracy of a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from cktf.cli.command import make_command
from cktf.cli.options import DataDirOption, NetworkOption, TrustCodeOption


@make_command
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Data set, see cktf datasets. By default the run's.")
    ] = None,
    data_dir: DataDirOption = None,
    network: NetworkOption = None,
    trust_code: TrustCodeOption = False,
) -> None:
    """Measure a run's accuracy on test images."""
    from cktf.workflows import evaluate as evaluate_run

    accuracy, name = evaluate_run(
        run,
        data,
        str(data_dir) if data_dir else None,
        network=network,
        trust_code=trust_code,
        show=True,
    )
    always_right = accuracy.num_classes is not None and accuracy.num_classes <= 5
    top5 = "" if always_right else f", top-5 {accuracy.top5:.2f} %"
    print(
        f"{name}: top-1 {accuracy.top1:.2f} % ± {accuracy.standard_error:.2f}{top5} of "
        f"{accuracy.samples:,} test images (± the standard error)"
    )
