"""The command line. Commands import what they need when they run: help answers at once."""

from typing import Annotated

import typer

from cktf import __version__
from cktf.cli.bench import bench, table
from cktf.cli.command import GroupedHelpCommand
from cktf.cli.distill import distill
from cktf.cli.doctor import FORWARDED, doctor
from cktf.cli.evaluate import evaluate
from cktf.cli.export import export
from cktf.cli.inspect import inspect
from cktf.cli.lists import datasets, methods, models
from cktf.cli.probe import probe
from cktf.cli.quickstart import quickstart
from cktf.cli.report import report
from cktf.cli.train import train
from cktf.cli.transfer import transfer

app = typer.Typer(
    name="cktf",
    help="Train a small classifier from a large one, by contrastive knowledge transfer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Train a small classifier from a large one, by contrastive knowledge transfer."""


COMMANDS = (
    quickstart, train, distill, transfer, probe, evaluate, export, inspect, bench, table, report,
    models, methods, datasets,
)  # fmt: skip
for command in COMMANDS:
    app.command(cls=GroupedHelpCommand)(command)
app.command(context_settings=FORWARDED)(doctor)


def main() -> None:
    """Entry point of `cktf`."""
    app()
