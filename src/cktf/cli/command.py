"""What the commands do alike: errors, recipes from the command line, training by them."""

import functools
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer

from cktf.errors import CktfError, Interrupted, RecipeError
from cktf.signals import interrupt_on_signals
from cktf.user_paths import expand_user_path

if TYPE_CHECKING:
    from cktf.workflows import Run

P = ParamSpec("P")
T = TypeVar("T")

USER_MISTAKE = 2
# That of a service that asks to be tried again: `EX_TEMPFAIL` of sysexits.h.
CAN_BE_CONTINUED = 75
_CONTINUED = ("train", "distill", "transfer")


def reports_errors(command: Callable[P, T]) -> Callable[P, T]:
    """A user's mistake becomes one message and exit code 2; `--debug` lets it through."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with interrupt_on_signals():
                given: dict[str, Any] = {name: _expanded(value) for name, value in kwargs.items()}
                return command(*args, **given)
        except Interrupted as stopped:
            how = _how_to_continue(command.__name__, stopped.folder)
            print(f"cktf: {stopped} {how}", file=sys.stderr)
            raise typer.Exit(CAN_BE_CONTINUED) from stopped
        except KeyboardInterrupt as stopped:
            print("cktf: Stopped before anything was trained.", file=sys.stderr)
            raise typer.Exit(128 + signal.SIGINT) from stopped
        except CktfError as error:
            if kwargs.get("debug"):
                raise
            print(f"cktf: {error}", file=sys.stderr)
            raise typer.Exit(USER_MISTAKE) from error
        except OSError as error:
            if kwargs.get("debug"):
                raise
            at = f": {error.filename}" if error.filename else ""
            print(
                f"cktf: A file cannot be read or written ({error.strerror or error}{at}). Look at "
                "the path, its permissions and the room on its disk.",
                file=sys.stderr,
            )
            raise typer.Exit(USER_MISTAKE) from error

    return wrapped


def _expanded(value: Any) -> Any:
    """What an option gives, its paths expand_user_path."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return expand_user_path(value) if isinstance(value, Path) else value


def _how_to_continue(command: str, folder: Path) -> str:
    """The command by which a run that was stopped goes on."""
    from cktf.recipes import find_code, read_recipe

    if command not in _CONTINUED:
        return "Continue with the same command again."
    recipe = folder / "recipe.yaml"
    trust = " --trust-code" if recipe.is_file() and find_code(read_recipe(recipe)) else ""
    return f"Continue with: cktf {command} --resume {shlex.quote(str(folder))}{trust}"


@dataclass(frozen=True)
class RunRequest:
    """What a command line asks for.

    Attributes:
        fields: of the recipe, not yet checked.
        out: the run folder.
        continued: whether a run in it is continued.
    """

    fields: dict[str, Any]
    out: Path | None
    continued: bool


def build_run_request(
    kind: str,
    given: dict[str, Any],
    *,
    recipe: Path | None,
    settings: list[str] | None,
    out: Path | None,
    resume: str | None,
    trust_code: bool,
) -> RunRequest:
    """Put a recipe's fields together.

    Args:
        kind: `train`, `distill` or `transfer`.
        given: values of command-line options by recipe field; None where not given.
        recipe: a YAML file whose fields the options override.
        settings: `field=value` assignments, which come last.
        out: the run folder.
        resume: `auto` or a run folder.
        trust_code: whether code that the recipe names may run.
    """
    from cktf.recipes import apply_assignments, find_recipe, read_recipe, refuse_code, set_field

    if resume is not None and resume != "auto":
        if out is not None:
            raise RecipeError(["--resume RUN continues in RUN itself; leave --out away."])
        out = expand_user_path(resume)
        recipe = recipe or find_recipe(out)
    elif resume is not None:
        if out is None:
            raise RecipeError(["--resume auto continues what is in --out; give --out."])
        if recipe is None and (out / "recipe.yaml").is_file():
            recipe = out / "recipe.yaml"
    fields: dict[str, Any] = {"kind": kind} if recipe is None else read_recipe(recipe)
    if fields.setdefault("kind", kind) != kind:
        raise RecipeError([f"kind: {recipe} says {fields['kind']!r}, and this is cktf {kind}."])
    if recipe is not None and not trust_code:
        # What is typed is the user's own word; what a file says may be a stranger's.
        refuse_code({n: v for n, v in fields.items() if given.get(n) is None}, recipe)
    for name, value in given.items():
        if value is not None:
            set_field(fields, name, str(value) if isinstance(value, Path) else value)
    _leave_out_options(fields, given.get("method"))
    apply_assignments(fields, settings or [])
    return RunRequest(fields, out, resume is not None)


def _leave_out_options(fields: dict[str, Any], method: str | None) -> None:
    """Of a recipe those of terms that the method which takes its own one's place does not have."""
    options = fields.get("options")
    if method is not None and isinstance(options, dict):
        from cktf.objectives import term_names

        named = term_names(method)
        fields["options"] = {name: own for name, own in options.items() if name in named}


def train_from_options(
    kind: str,
    given: dict[str, Any],
    *,
    recipe: Path | None,
    settings: list[str] | None,
    out: Path | None,
    resume: str | None,
    dry_run: bool,
    trust_code: bool,
) -> None:
    """Put a recipe together, carry it out and say what came of it; with `dry_run` only try it."""
    from cktf.cli.doctor import show_dry_run
    from cktf.recipes import parse_recipe, to_yaml
    from cktf.workflows import prepare, preview_run, run_recipe

    wanted = build_run_request(
        kind, given, recipe=recipe, settings=settings, out=out, resume=resume,
        trust_code=trust_code,
    )  # fmt: skip
    parsed = parse_recipe(wanted.fields)
    if dry_run:
        parts = prepare(parsed, wanted.out, resume=wanted.continued, trust_code=trust_code)[1]
        show_dry_run(preview_run(parsed, parts))
        print(to_yaml(parsed), end="")
        return
    report(run_recipe(parsed, wanted.out, resume=wanted.continued, trust_code=trust_code))


def report(run: "Run") -> None:
    """Say what a finished run came to, and where it is."""
    summary = run.summary
    print(f"{summary['student']}: {summary['student_parameters']:,} parameters")
    if summary["test_top1"] is not None:
        error = summary["test_standard_error"]
        print(f"top-1 {summary['test_top1']:.2f} % ± {error:.2f} (standard error of the test set)")
    if summary.get("validation_top1") is not None:
        tested = summary["kept_test_top1"]
        print(
            f"kept: epoch {summary['kept_epoch']}, the best on held-out images "
            f"({summary['validation_top1']:.2f} %)"
            + ("" if tested is None else f": top-1 {tested:.2f} %")
        )
    if summary["teacher_top1"] is not None:
        ratio = summary["compression_ratio"]
        print(f"teacher {summary['teacher_top1']:.2f} %, {ratio:.2f} times larger")
    rate = summary["images_per_second"]
    print(f"{summary['seconds']:.0f} s, {rate:,.0f} images/s; run: {run.folder}")
