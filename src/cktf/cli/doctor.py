"""`cktf doctor` and `--dry-run`: check a planned run on two batches."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cktf.cli.command import print_table

if TYPE_CHECKING:
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
    has_model = any(argument.partition("=")[0] == "--model" for argument in arguments)
    name = "train" if has_model else "distill"
    if arguments and arguments[0] in group.commands.keys() - {context.info_name}:
        name = arguments.pop(0)
    command = group.commands[name]
    # With standalone_mode=False it returns the exit code instead of ending the process.
    code = command.main([*arguments, "--dry-run"], prog_name=f"cktf {name}", standalone_mode=False)
    raise typer.Exit(code or 0)


def show_dry_run(dry_run: "DryRun") -> None:
    """Print the result of a dry run on the error stream; the recipe goes to standard output."""
    from cktf.functional.maps import pair_stages

    console = Console(stderr=True, highlight=False)
    console.print(f"Data: {dry_run.data}")
    trained = "network" if dry_run.teacher is None else "student"
    for role, network in ((trained.capitalize(), dry_run.student), ("Teacher", dry_run.teacher)):
        if network is not None:
            console.print(
                f"{role}: {network.name} has {network.parameters:,} parameters. Its input is "
                f"{network.input}."
            )
    networks = {trained: dry_run.student}
    if dry_run.teacher is not None:
        networks["teacher"] = dry_run.teacher
    columns = [_describe_features(network) for network in networks.values()]
    rows = []
    for kind in ("stem", "stage", "embedding", "logits"):
        cells = [column[kind] for column in columns]
        # In the pairs that methods compare.
        pairs = pair_stages(*cells) if len(cells) == 2 else [(cell,) for cell in cells[0]]
        for number, pair in enumerate(pairs, 1):
            rows.append([f"stage {number}" if kind == "stage" else kind, *pair])
    print_table(["feature", *networks], rows, console)
    console.print(f"Loss: {dry_run.objective}.", markup=False)
    for number, terms in enumerate(dry_run.terms, 1):
        losses = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        console.print(f"Losses of batch {number}: {losses}.")
    console.print(f"Gradient norm of the {trained}: {dry_run.gradient:.3g}.")
    epoch_seconds = dry_run.step_seconds * dry_run.steps
    console.print(
        f"A step takes {dry_run.step_seconds * 1e3:,.0f} ms, an epoch of {dry_run.steps:,} steps "
        f"{_format_time(epoch_seconds)}, and {dry_run.epochs} epochs "
        f"{_format_time(epoch_seconds * dry_run.epochs)}."
    )
    contrast = f" Memory of contrast: {dry_run.contrast}." if dry_run.contrast else ""
    console.print(f"Peak memory: {dry_run.peak_memory_mb:,.0f} MiB.{contrast}")
    for advice in dry_run.advice:
        console.print(f"Warning: {advice}", markup=False)
    if not dry_run.advice:
        console.print("No problems found.")


def _format_time(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def _describe_features(network: "NetworkPreview") -> dict[str, list[str]]:
    """List path and shape of the features of each kind."""
    paths, features = network.paths, network.features
    tensors: dict[str, list[tuple[str, Tensor | None]]] = {
        "stem": [(paths.stem, features.stem)],
        "stage": list(zip(paths.stages, features.stages, strict=False)),
        "embedding": [(paths.embedding, features.embedding)],
        "logits": [("", features.logits)],
    }
    return {
        kind: [
            f"{path} {' x '.join(map(str, value.shape[1:]))}".strip()
            for path, value in pairs
            if value is not None
        ]
        for kind, pairs in tensors.items()
    }
