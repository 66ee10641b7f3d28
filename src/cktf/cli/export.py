"""`cktf export`: the network of a finished run as ONNX."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cktf.cli.command import make_command
from cktf.cli.options import DataDirOption, TrustCodeOption


@make_command
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File. By default student.onnx in the run folder."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also write a file with int8 weights and activations."),
    ] = False,
    data_dir: DataDirOption = None,
    trust_code: TrustCodeOption = False,
) -> None:
    """Export a run's network to ONNX, and check it."""
    from cktf.export import INPUT, OUTPUT, export_run

    directory = None if data_dir is None else str(data_dir)
    exports = export_run(run, out, int8=int8, data_dir=directory, trust_code=trust_code)
    table = Table(box=box.SIMPLE)
    for name in ("", "MB", "ms an image", "top-1 %", "as PyTorch %"):
        table.add_column(name, justify="right" if name else "left")
    for export in exports:
        top1 = "" if export.accuracy is None else f"{export.accuracy.top1:.2f}"
        agreement = "" if export.agreement is None else f"{export.agreement:.2f}"
        table.add_row(
            export.form, f"{export.megabytes:.2f}", f"{export.latency_ms:.2f}", top1, agreement
        )
    Console().print(table)
    if exports[0].missing_reason:
        print(f"Not checked on test images: {exports[0].missing_reason}")
    for export in exports[1:]:
        print(f"{export.form}: {export.path}")
    print(f"Input `{INPUT}`: float32 images in [0, 1], any number at a time. Output `{OUTPUT}`.")
