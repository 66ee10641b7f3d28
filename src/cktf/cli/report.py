"""`cktf report`: what runs came to, as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from cktf.cli.command import reports_errors
from cktf.cli.options import DataDirOption, DebugOption, TrustCodeOption


@reports_errors
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, which are laid side by side.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file; by default report.html in the first run's folder."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=10, help="At most so many test images are classified.")
    ] = 10_000,
    data_dir: DataDirOption = None,
    trust_code: TrustCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Show runs in one HTML file that needs no network."""
    from cktf.report import write_report

    where = None if data_dir is None else str(data_dir)
    path = write_report(
        runs, out or runs[0] / "report.html", images=images, data_dir=where, trust_code=trust_code
    )
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MB): open it in a browser")
