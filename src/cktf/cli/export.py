"""`cktf export`: the network of a finished run as ONNX."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cktf.cli.command import reports_errors
from cktf.cli.options import DataDirOption, DebugOption, TrustCodeOption


@reports_errors
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The file; by default student.onnx in the run folder."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Write one with int8 weights and activations beside it."),
    ] = False,
    data_dir: DataDirOption = None,
    trust_code: TrustCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a run's network as ONNX, and try it on the run's test images."""
    from cktf.export import INPUT, OUTPUT, export_run

    where = None if data_dir is None else str(data_dir)
    found = export_run(run, out, int8=int8, data_dir=where, trust_code=trust_code)
    table = Table(box=box.SIMPLE)
    for name in ("", "MB", "ms an image", "top-1 %", "as PyTorch %"):
        table.add_column(name, justify="right" if name else "left")
    for each in found:
        top1 = "" if each.accuracy is None else f"{each.accuracy.top1:.2f}"
        same = "" if each.agreement is None else f"{each.agreement:.2f}"
        table.add_row(each.form, f"{each.megabytes:.2f}", f"{each.latency_ms:.2f}", top1, same)
    Console().print(table)
    if found[0].missing:
        print(f"Not tried on test images: {found[0].missing}")
    for each in found[1:]:
        print(f"{each.form}: {each.path}")
    print(f"Input `{INPUT}`: float32 images in [0, 1], any number at a time. Output `{OUTPUT}`.")
