"""`cktf doctor` and `--dry-run`: two batches of a planned run, and what they told."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from cktf.workflows import DryRun
    from cktf.workflows.dry_run import NetworkPreview

FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def doctor(context: typer.Context) -> None:
    """Check a run on two batches: `doctor distill …`.

    `cktf doctor distill …` is `cktf distill … --dry-run`.
    """
    assert context.parent is not None
    group, arguments = context.parent.command, list(context.args)
    assert isinstance(group, typer.core.TyperGroup)
    named = any(argument.partition("=")[0] == "--model" for argument in arguments)
    name = "train" if named else "distill"
    if arguments and arguments[0] in group.commands.keys() - {context.info_name}:
        name = arguments.pop(0)
    command = group.commands[name]
    # Not standalone: it returns the exit code in place of ending the process.
    code = command.main([*arguments, "--dry-run"], prog_name=f"cktf {name}", standalone_mode=False)
    raise typer.Exit(code or 0)


def show_dry_run(found: "DryRun") -> None:
    """Print what two batches told, on the error stream: the recipe goes to the output."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(f"data     {found.data}")
    for role, network in (("student", found.student), ("teacher", found.teacher)):
        if network is not None:
            text = f"{network.name}: {network.parameters:,} parameters; sees {network.input}"
            console.print(f"{role}  {text}")
    console.print(_compared(found))
    for number, terms in enumerate(found.terms, 1):
        losses = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        console.print(f"batch {number}: {losses}")
    console.print(f"gradient of the student: {found.gradient:.3g}")
    epoch = found.step_seconds * found.steps
    console.print(
        f"a step {found.step_seconds * 1e3:,.0f} ms; an epoch of {found.steps:,} steps "
        f"{_time(epoch)}; {found.epochs} epochs {_time(epoch * found.epochs)}"
    )
    contrast = f"; contrast: {found.contrast}" if found.contrast else ""
    console.print(f"peak memory {found.peak_memory_mb:,.0f} MiB{contrast}")
    for advice in found.advice:
        console.print(f"! {advice}", markup=False)
    if not found.advice:
        console.print("Nothing looks wrong.")


def _compared(found: "DryRun") -> "Table":
    """The features side by side, as the methods that compare stages pair them."""
    from rich import box
    from rich.table import Table

    from cktf.functional.maps import paired

    networks = {"student": found.student} | ({"teacher": found.teacher} if found.teacher else {})
    table = Table(box=box.SIMPLE)
    for column in ("feature", *networks):
        table.add_column(column, overflow="fold")
    columns = [_named(network) for network in networks.values()]
    for name in ("stem", "stage", "embedding", "logits"):
        ends = [column.get(name, []) for column in columns]
        rows = paired(*ends) if len(ends) == 2 else [(end,) for end in ends[0]]
        for number, row in enumerate(rows, 1):
            table.add_row(f"stage {number}" if name == "stage" else name, *row)
    return table


def _named(network: "NetworkPreview") -> dict[str, list[str]]:
    """Path and shape of each kind of feature."""
    paths, features = network.paths, network.features
    found: dict[str, list[tuple[str, Tensor | None]]] = {
        "stem": [(paths.stem, features.stem)],
        "stage": list(zip(paths.stages, features.stages, strict=False)),
        "embedding": [(paths.embedding, features.embedding)],
        "logits": [("", features.logits)],
    }
    return {
        name: [
            f"{path} {' x '.join(map(str, value.shape[1:]))}".strip()
            for path, value in values
            if value is not None
        ]
        for name, values in found.items()
    }


def _time(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
