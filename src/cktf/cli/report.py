"""`cktf report`: runs compared in one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from cktf.cli.command import make_command
from cktf.cli.options import DataDirOption, NetworkOption, TrustCodeOption


@make_command
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to compare.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML file. By default report.html in the first run folder."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=10, help="Largest number of test images to classify.")
    ] = 10_000,
    data_dir: DataDirOption = None,
    network: NetworkOption = None,
    trust_code: TrustCodeOption = False,
) -> None:
    """Compare runs in one HTML file."""
    from cktf.report import write_report

    path = write_report(
        runs,
        out or runs[0] / "report.html",
        images=images,
        data_dir=str(data_dir) if data_dir else None,
        network=network,
        trust_code=trust_code,
    )
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MB): open it in a browser")
