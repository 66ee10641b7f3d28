"""What the commands share: options, errors, and recipes from the command line."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from cktf.errors import CktfError, RecipeError

if TYPE_CHECKING:
    from cktf.recipes import Recipe
    from cktf.workflows import Run

P = ParamSpec("P")
T = TypeVar("T")

USER_MISTAKE = 2

DataOption = Annotated[str | None, typer.Option("--data", help="A data set: see cktf datasets.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Its folder.")]
EpochsOption = Annotated[int | None, typer.Option("--epochs", help="Passes over the images.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The run folder; by default a new one in runs/.")
]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", help="A recipe.yaml; options given here override it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any field of the recipe: --set optimizer.lr=0.02", metavar="FIELD=VALUE"
    ),
]
ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume", help="A run folder to continue; auto: continue --out if it holds a run."
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Try two batches, say what they told, print the recipe; train nothing."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def reports_errors(command: Callable[P, T]) -> Callable[P, T]:
    """A user's mistake becomes one message and exit code 2; `--debug` lets it through."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except CktfError as error:
            if kwargs.get("debug"):
                raise
            print(f"cktf: {error}", file=sys.stderr)
            raise typer.Exit(USER_MISTAKE) from error

    return wrapped


def train_from_options(
    kind: str,
    given: dict[str, Any],
    *,
    recipe: Path | None,
    settings: list[str] | None,
    out: Path | None,
    resume: str | None,
    dry_run: bool,
) -> None:
    """Put a recipe together, carry it out and say what came of it.

    Args:
        kind: `train` or `distill`.
        given: values of command-line options by recipe field; None where not given.
        recipe: a YAML file whose fields the options override.
        settings: `field=value` assignments, which come last.
        out: the run folder.
        resume: `auto` or a run folder.
        dry_run: only check, and print the recipe.
    """
    from cktf.cli.rehearsal import show_rehearsal
    from cktf.recipes import recipe_of, to_yaml
    from cktf.workflows import prepare, rehearse, run_recipe

    continued = resume is not None
    if resume is not None and resume != "auto":
        if out is not None:
            raise RecipeError(["--resume RUN continues in RUN itself; leave --out away."])
        out = Path(resume)
        recipe = recipe or recipe_of(out)
    elif continued:
        if out is None:
            raise RecipeError(["--resume auto continues what is in --out; give --out."])
        if recipe is None and (out / "recipe.yaml").is_file():
            recipe = out / "recipe.yaml"
    parsed = _recipe(kind, given, recipe, settings)
    if dry_run:
        show_rehearsal(rehearse(parsed, prepare(parsed, out, resume=continued)[1]))
        print(to_yaml(parsed), end="")
        return
    report(run_recipe(parsed, out, resume=continued))


def _recipe(
    kind: str, given: dict[str, Any], recipe: Path | None, settings: list[str] | None
) -> "Recipe":
    from cktf.recipes import assign, make_recipe, put, read_recipe

    fields: dict[str, Any] = {"kind": kind} if recipe is None else read_recipe(recipe)
    if fields.setdefault("kind", kind) != kind:
        raise RecipeError([f"kind: {recipe} says {fields['kind']!r}, and this is cktf {kind}."])
    for name, value in given.items():
        if value is not None:
            put(fields, name, str(value) if isinstance(value, Path) else value)
    assign(fields, settings or [])
    return make_recipe(fields)


def report(run: "Run") -> None:
    """Say what a finished run came to, and where it is."""
    summary = run.summary
    print(f"{summary['student']}: {summary['student_parameters']:,} parameters")
    if summary["test_top1"] is not None:
        error = summary["test_standard_error"]
        print(f"top-1 {summary['test_top1']:.2f} % ± {error:.2f} (standard error of the test set)")
    if summary["teacher_top1"] is not None:
        ratio = summary["compression_ratio"]
        print(f"teacher {summary['teacher_top1']:.2f} %, {ratio:.2f} times larger")
    rate = summary["images_per_second"]
    print(f"{summary['seconds']:.0f} s, {rate:,.0f} images/s; run: {run.folder}")
