"""The command line. Commands import what they need when they run: help answers at once."""

from typing import Annotated, Any

import typer

from cktf import __version__
from cktf.cli.bench import bench, table
from cktf.cli.command import Command, exit_with_mistake
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
from cktf.errors import nearest
from cktf.output import protect_standard_streams

# Names of commands in other tools.
_OTHER_NAMES = {
    "version": "cktf --version", "help": "cktf --help", "run": "cktf train or cktf distill",
    "list": "cktf models, cktf methods or cktf datasets", "ls": "cktf models", "fit": "cktf train",
    "teach": "cktf train", "test": "cktf evaluate", "eval": "cktf evaluate",
    "predict": "cktf export", "convert": "cktf export", "data": "cktf datasets",
    "benchmark": "cktf bench", "finetune": "cktf probe RUN --finetune", "resume": "--resume RUN",
    "demo": "cktf quickstart",
}  # fmt: skip


class CommandGroup(typer.core.TyperGroup):
    """The commands; a mistyped name is told with the nearest one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command, of which there are few."""
        names = {name for p in self.params for name in p.opts} | set(ctx.help_option_names)
        if args and args[0].startswith("-") and args[0] not in names:
            command = next((word for word in args if word in self.commands), "COMMAND")
            exit_with_mistake(
                f"No such option: {args[0]}. Options follow the command: cktf {command} {args[0]}."
            )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that a line begins with."""
        name = args[0]
        if name not in self.commands:
            other = _OTHER_NAMES.get(name.lower())
            hint = f"Did you mean {other}?" if other else nearest(name, self.commands)
            exit_with_mistake(f"No such command {name!r}. {hint}")
        return super().resolve_command(ctx, args)


HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="cktf",
    cls=CommandGroup,
    context_settings=HELP,
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
    app.command(cls=Command, context_settings=HELP)(command)
app.command(context_settings=FORWARDED)(doctor)


def main() -> None:
    """Entry point of `cktf`."""
    protect_standard_streams()
    app()
