"""`cktf inspect`: the features of a network that methods compare."""

from typing import Annotated

import typer

from cktf.cli.command import make_command, print_table
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
    from cktf.recipes.validation import check_network

    shape = images.lower().split("x")
    if len(shape) != 3 or not all(size.isdigit() and int(size) for size in shape):
        raise ModelError(f"--input is CHANNELSxHEIGHTxWIDTH, such as 3x224x224; given {images!r}.")
    channels, height, width = map(int, shape)
    stages = taps.split(",") if taps else ()
    check_network(network)
    from cktf.workflows import inspect as inspect_network

    inspection = inspect_network(
        network, (channels, height, width), stages=stages, embedding=embedding
    )
    paths, features = inspection.paths, inspection.features
    rows = [
        ("stem", paths.stem, features.stem),
        *(
            (f"stage {number}", path, value)
            for number, (path, value) in enumerate(
                zip(paths.stages, features.stages, strict=True), 1
            )
        ),
        ("embedding", paths.embedding, features.embedding),
        ("logits", "", features.logits),
    ]
    print_table(
        ["feature", "path", "shape"],
        [
            (name, path, " x ".join(map(str, value.shape[1:])))
            for name, path, value in rows
            if value is not None
        ],
    )
    size = " x ".join(map(str, inspection.input))
    print(
        f"{inspection.parameters:,} parameters; {inspection.macs / 1e6:,.1f} million "
        f"multiply-adds for an image of {size}."
    )
    if not features.preacts:
        print("Method ab cannot use it: its maps before activation were not found.")
