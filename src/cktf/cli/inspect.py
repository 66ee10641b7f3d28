"""`cktf inspect`: what would be compared of a network."""

from typing import Annotated

import typer

from cktf.cli.command import reports_errors
from cktf.cli.options import DebugOption
from cktf.errors import ModelError


@reports_errors
def inspect(
    network: Annotated[
        str, typer.Argument(help="Of cktf models, timm:NAME, torchvision:NAME, file.py:function.")
    ],
    images: Annotated[
        str, typer.Option("--input", help="Channels, height and width of the images.")
    ] = "3x32x32",
    taps: Annotated[
        str | None, typer.Option(metavar="PATH,PATH,…", help="Its stages; else they are found.")
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(metavar="PATH", help="Its embedding; else it is found.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Show a network's stages, embedding, parameters and cost."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from cktf.workflows import inspect as look

    found = look(
        network, _shape(images), stages=taps.split(",") if taps else (), embedding=embedding
    )
    paths, features = found.paths, found.features
    table = Table(box=box.SIMPLE)
    for column in ("feature", "path", "shape"):
        table.add_column(column, overflow="fold")

    def row(name: str, path: str, shape: tuple[int, ...]) -> None:
        table.add_row(name, path, " x ".join(map(str, shape[1:])))

    if features.stem is not None:
        row("stem", paths.stem, features.stem.shape)
    for number, (path, value) in enumerate(zip(paths.stages, features.stages, strict=True), 1):
        row(f"stage {number}", path, value.shape)
    if features.embedding is not None:
        row("embedding", paths.embedding, features.embedding.shape)
    row("logits", "", features.logits.shape)
    console = Console()
    console.print(table)
    size = " x ".join(map(str, found.input))
    console.print(
        f"{found.parameters:,} parameters; {found.macs / 1e6:,.1f} million multiply-adds for an "
        f"image of {size}.",
        highlight=False,
    )
    if not features.preacts:
        console.print("Its maps before activation cannot be told, which method ab reads.")


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) for p in parts):
        raise ModelError(f"--input is CHANNELSxHEIGHTxWIDTH, such as 3x224x224; given {text!r}.")
    channels, height, width = map(int, parts)
    return channels, height, width
