"""`cktf inspect`: the features of a network that methods compare."""

from typing import Annotated

import typer

from cktf.cli.command import make_command
from cktf.errors import ModelError


@make_command
def inspect(
    network: Annotated[
        str,
        typer.Argument(help="See cktf models; or timm:NAME, torchvision:NAME, FILE.py:FUNCTION."),
    ],
    images: Annotated[
        str, typer.Option("--input", help="Channels, height and width of an image.")
    ] = "3x32x32",
    taps: Annotated[
        str | None,
        typer.Option(
            metavar="PATH,PATH,…", help="Modules whose outputs are its stages. Found by default."
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Input of its classifier, such as fc:input. Found by default."
        ),
    ] = None,
) -> None:
    """Show a network's stages, embedding and size."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from cktf.workflows import inspect as inspect_network

    stages = taps.split(",") if taps else ()
    inspection = inspect_network(network, _parse_shape(images), stages=stages, embedding=embedding)
    paths, features = inspection.paths, inspection.features
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
    size = " x ".join(map(str, inspection.input))
    console.print(
        f"{inspection.parameters:,} parameters; {inspection.macs / 1e6:,.1f} million "
        f"multiply-adds for an image of {size}.",
        highlight=False,
    )
    if not features.preacts:
        console.print("Method ab cannot use it: its maps before activation were not found.")


def _parse_shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) for p in parts):
        raise ModelError(f"--input is CHANNELSxHEIGHTxWIDTH, such as 3x224x224; given {text!r}.")
    channels, height, width = map(int, parts)
    return channels, height, width
