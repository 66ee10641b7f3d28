"""`cktf export`: the network of a finished run as ONNX."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cktf.cli.command import make_command, print_table
from cktf.cli.options import DataDirOption, NetworkOption, TrustCodeOption


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
    opset: Annotated[
        int | None,
        typer.Option(min=1, help="Version of the ONNX operators. By default PyTorch's."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, metavar="PIXELS", help="Side of the images. By default training's."),
    ] = None,
    data_dir: DataDirOption = None,
    network: NetworkOption = None,
    trust_code: TrustCodeOption = False,
) -> None:
    """Export a run's network to ONNX, and check it."""
    from cktf.export import INPUT, OUTPUT, export_run

    directory = str(data_dir) if data_dir else None
    exports = export_run(
        run,
        out,
        int8=int8,
        data_dir=directory,
        network=network,
        opset=opset,
        image_size=image_size,
        trust_code=trust_code,
    )
    rows = []
    for export in exports:
        top1 = export.accuracy and export.accuracy.top1
        figures = (export.megabytes, export.latency_ms, top1, export.agreement)
        rows.append([export.form, *("" if x is None else f"{x:.2f}" for x in figures)])
    print_table(["", ">MB", ">ms an image", ">top-1 %", ">as PyTorch %"], rows)
    if exports[0].missing_reason:
        print(f"Not checked on test images: {exports[0].missing_reason}")
    for export in exports[1:]:
        print(f"{export.form}: {export.path}")
    print(f"Input `{INPUT}`: float32 images in [0, 1], any number at a time. Output `{OUTPUT}`.")
    for warning in (warning for export in exports for warning in export.warnings):
        print(f"! {warning}", file=sys.stderr)
    if any(export.disagrees for export in exports):
        raise typer.Exit(1)
