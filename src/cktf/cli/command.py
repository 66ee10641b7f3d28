"""Commands: their options, their errors, and runs from the command line."""

import functools
import inspect
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cktf.cli.options import Option, options_of_command, suggest_option
from cktf.errors import CktfError, Interrupted, RecipeError, command_line_wording
from cktf.output import raise_if_output_was_lost
from cktf.signals import interrupt_on_signals
from cktf.user_paths import expand_user_path, shorten_path

if TYPE_CHECKING:
    from cktf.recipes import Recipe

USER_MISTAKE = 2
# `EX_TEMPFAIL` of sysexits.h: the same command may be tried again.
CAN_BE_RESUMED = 75
_RESUMABLE_COMMANDS = ("train", "distill", "transfer")
_DEBUG = Option("", "--debug", None, bool, "Show the traceback of an error.")


class Command(typer.core.TyperCommand):
    """A command that tells what a mistyped line may mean.

    Its help text lists arguments first, then options under their headings.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line; a mistake ends the program.

        Of an option that is given twice, click itself would take the last value.
        """
        values, words = self._split(ctx, args)
        for parameter in self.params:
            name, given = parameter.opts[0], values.get(str(parameter.name), [])
            if name == "--set":
                refuse_repeated_assignments(given)
            elif len(given) > 1 and not getattr(parameter, "multiple", False):
                exit_with_mistake(f"{name} is given {len(given)} times, as {', '.join(given)}.")
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        if len(words) > len(arguments) and all(p.nargs == 1 for p in arguments):
            exit_with_mistake(self._explain_words(words[len(arguments) :]))
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if error.param is None or error.param.name not in values:
                raise
            name, value = error.param.opts[0], values[str(error.param.name)][0]
            exit_with_mistake(f"{name} {value}: {error.message.rstrip('.')}.")

    def _split(self, ctx: Any, args: list[str]) -> tuple[dict[str, list[str]], list[str]]:
        """The values of each option by its parameter's name, and the words that belong to none."""
        options = {name: p for p in self.params for name in (*p.opts, *p.secondary_opts)}
        values: dict[str, list[str]] = {}
        words, rest = list[str](), iter(args)
        for token in rest:
            name, equals, value = token.partition("=")
            if token == "--":
                words += rest
            elif not token.startswith("-") or token == "-":
                words.append(token)
            elif name in options and not getattr(options[name], "is_flag", False):
                value = value if equals else next(rest, "")
                values.setdefault(str(options[name].name), []).append(value)
            elif name.startswith("--") and name not in (*options, *ctx.help_option_names):
                hint = suggest_option(str(self.name), name, [n for n in options if n[:2] == "--"])
                exit_with_mistake(f"No such option: {name}. {hint}")
        return values, words

    def _explain_words(self, words: list[str]) -> str:
        """Say which options stray words may belong to."""
        options = {option.name for _, option in options_of_command(str(self.name))}
        named = [n for n in ("--teacher", "--student", "--model", "--data") if n in options]
        folder = next((word for word in words if Path(word).is_dir()), None)
        if folder is not None and "--data" in options:
            example = f"--data imagefolder:{folder}"
        else:
            pairs = zip(named, [*words, "…", "…", "…"], strict=False)
            example = " ".join(f"{name} {word}" for name, word in pairs)
        advice = f" Values follow the name of their option: {example}." if named else ""
        return f"cktf {self.name} does not know what {' '.join(words)!r} is for.{advice}"

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections of the help text."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                heading = "Arguments"
            if (record := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(heading, []).append(record)
        # The options without a heading of their own come last.
        for heading in sorted(sections, key=lambda heading: heading == "Options"):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


def exit_with_mistake(message: str) -> NoReturn:
    """Print a user's mistake and end the program with exit code 2."""
    print(f"cktf: {message}", file=sys.stderr)
    raise typer.Exit(USER_MISTAKE)


def refuse_repeated_assignments(assignments: Iterable[str]) -> None:
    """End the program if `--set` gives one field two values."""
    values: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if equals and name in values:
            exit_with_mistake(f"--set gives {name} twice, as {values[name]} and {value}.")
        values[name] = value


def make_command(function: Callable[..., None]) -> Callable[..., None]:
    """Turn a function into a command.

    Its parameter `**options` stands for the options of the table that its command has. `--debug`
    is added. A user's mistake becomes one message and exit code 2; `--debug` raises it instead.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
        options = options_of_command(function.__name__)
        parameters[-1:] = [option.parameter(heading) for heading, option in options]

    @functools.wraps(function)
    def command(*, debug: bool = False, **arguments: Any) -> None:
        try:
            with interrupt_on_signals(), command_line_wording():
                function(**{name: _expand_paths(value) for name, value in arguments.items()})
            if function.__name__ not in _RESUMABLE_COMMANDS:
                # A run has written its results to its folder.
                raise_if_output_was_lost()
        except Interrupted as stop:
            advice = _resume_advice(function.__name__, stop.folder)
            print(f"cktf: {stop} {advice}", file=sys.stderr)
            raise typer.Exit(CAN_BE_RESUMED) from stop
        except KeyboardInterrupt as stop:
            print("cktf: Stopped before anything was trained.", file=sys.stderr)
            raise typer.Exit(128 + signal.SIGINT) from stop
        except (CktfError, OSError) as error:
            if debug:
                raise
            with command_line_wording():
                message = str(error)
            if isinstance(error, OSError):
                path = f": {error.filename}" if error.filename else ""
                message = (
                    f"A file cannot be read or written ({error.strerror or error}{path}). Look at "
                    "the path, its permissions and the room on its disk."
                )
            print(f"cktf: {message}", file=sys.stderr)
            raise typer.Exit(USER_MISTAKE) from error

    signature = inspect.Signature([*parameters, _DEBUG.parameter()])
    command.__signature__ = signature  # type: ignore[attr-defined]
    return command


def _expand_paths(value: Any) -> Any:
    """Expand `~` in the paths of an option's value."""
    if isinstance(value, list):
        return [_expand_paths(item) for item in value]
    return expand_user_path(value) if isinstance(value, Path) else value


def _resume_advice(command: str, folder: Path) -> str:
    """The command that resumes a stopped run."""
    from cktf.recipes.files import find_user_code_fields, read_recipe

    if command not in _RESUMABLE_COMMANDS:
        return "Continue with the same command again."
    recipe = folder / "recipe.yaml"
    trust = (
        " --trust-code" if recipe.is_file() and find_user_code_fields(read_recipe(recipe)) else ""
    )
    run = shlex.quote(str(shorten_path(folder)))
    return f"Continue with: cktf {command} --resume {run}{trust}"


@dataclass(frozen=True)
class RunRequest:
    """A run that a command line asks for.

    Attributes:
        fields: of the recipe, not yet checked.
        out: the run folder; None for a new one.
        resume: whether to resume the run in it.
        dry_run: whether to only check the run.
        trust_code: whether code that the recipe or weights name may run.
    """

    fields: dict[str, Any]
    out: Path | None
    resume: bool
    dry_run: bool
    trust_code: bool


def build_run_request(
    command: str, options: Mapping[str, Any], fields: Mapping[str, Any] | None = None
) -> RunRequest:
    """Build the fields of a recipe: of `--recipe`, then of the options, then of `--set`.

    Args:
        command: `train`, `distill`, `transfer` or `probe`.
        options: values of its options; None, or left out, where not typed.
        fields: by dotted name, fields that no option sets; they override the options.
    """
    from cktf.objectives.method_string import term_names
    from cktf.recipes.files import apply_assignments, read_recipe, refuse_code, set_fields

    kind = "train" if command == "probe" else command
    trust_code = bool(options.get("trust_code"))
    recipe, out = _find_recipe_and_folder(options)
    recipe_fields: dict[str, Any] = {"kind": kind} if recipe is None else read_recipe(recipe)
    if recipe_fields.setdefault("kind", kind) != kind:
        raise RecipeError(
            [f"kind: {recipe} says {recipe_fields['kind']!r}, and this is cktf {kind}."]
        )
    option_fields: dict[str, Any] = {}
    for _, option in options_of_command(command):
        if (value := options.get(option.key)) is not None:
            option_fields |= option.recipe_fields(str(value) if isinstance(value, Path) else value)
    option_fields |= {name: value for name, value in (fields or {}).items() if value is not None}
    if recipe is not None and not trust_code:
        # The user may name code in an option; a recipe may come from a stranger.
        refuse_code({n: v for n, v in recipe_fields.items() if n not in option_fields}, recipe)
    set_fields(recipe_fields, option_fields)
    if "method" in option_fields and isinstance(recipe_fields.get("options"), dict):
        # The recipe may have options of methods that --method replaced.
        names = term_names(recipe_fields["method"])
        recipe_fields["options"] = {
            name: values for name, values in recipe_fields["options"].items() if name in names
        }
    apply_assignments(recipe_fields, options.get("set") or [])
    resume = options.get("resume") is not None
    return RunRequest(recipe_fields, out, resume, bool(options.get("dry_run")), trust_code)


def _find_recipe_and_folder(options: Mapping[str, Any]) -> tuple[Path | None, Path | None]:
    """The recipe file to read and the run folder, by `--recipe`, `--out` and `--resume`."""
    from cktf.recipes.files import find_recipe

    recipe, out, resume = (options.get(name) for name in ("recipe", "out", "resume"))
    if resume is None:
        return recipe, out
    if resume != "auto":
        if out is not None:
            raise RecipeError(["--resume RUN continues in RUN itself; leave out --out."])
        out = expand_user_path(resume)
        return recipe or find_recipe(out), out
    if out is None:
        raise RecipeError(["--resume auto continues what is in --out; give --out."])
    if recipe is None and (out / "recipe.yaml").is_file():
        recipe = out / "recipe.yaml"
    return recipe, out


def check_names(recipe: "Recipe", request: RunRequest) -> None:
    """Check what a recipe names, and the run folder, before PyTorch is imported.

    A mistake is so told within a second; without one, `prepare` checks all of the recipe.
    """
    from cktf.engine.run_folder import RunFolder
    from cktf.recipes.validation import check_recipe

    problems = check_recipe(recipe)
    if request.out is not None:
        with problems.collect("out"):
            RunFolder(request.out).check(resume=request.resume)
    problems.raise_if_any()


def run_and_report(request: RunRequest) -> None:
    """Train by a recipe and print the result; a dry run checks it and prints the recipe."""
    from cktf.cli.doctor import show_dry_run
    from cktf.recipes.files import parse_recipe, to_yaml

    recipe = parse_recipe(request.fields)
    check_names(recipe, request)
    from cktf.workflows import continue_with_epochs, prepare, preview_run, run_recipe

    resume, trust_code = request.resume, request.trust_code
    recipe = continue_with_epochs(recipe, request.out, resume=resume)
    if request.dry_run:
        components = prepare(recipe, request.out, resume=resume, trust_code=trust_code)[1]
        show_dry_run(preview_run(recipe, components))
        print(to_yaml(recipe), end="")
        return
    run = run_recipe(recipe, request.out, resume=resume, trust_code=trust_code)
    summary = run.summary
    # The run has told them, perhaps hours ago.
    if count := len(summary.get("warnings", [])):
        log = shorten_path(run.folder / "log.txt")
        print(f"{count} warning{'s' * (count > 1)}, above and in {log}", file=sys.stderr)
    print(f"{summary['student']}: {summary['student_parameters']:,} parameters")
    if summary["test_top1"] is not None:
        error = summary["test_standard_error"]
        print(f"top-1 {summary['test_top1']:.2f} % ± {error:.2f} (standard error of the test set)")
    if summary.get("validation_top1") is not None:
        test_top1 = summary["kept_test_top1"]
        print(
            f"kept: epoch {summary['kept_epoch']}, the best on validation images "
            f"({summary['validation_top1']:.2f} %)"
            + ("" if test_top1 is None else f": top-1 {test_top1:.2f} %")
        )
    if summary["teacher_top1"] is not None:
        ratio = summary["compression_ratio"]
        print(f"teacher {summary['teacher_top1']:.2f} %, {ratio:.2f} times the parameters")
    rate = summary["images_per_second"]
    print(f"{summary['seconds']:.0f} s, {rate:,.0f} images/s; run: {shorten_path(run.folder)}")


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table; a column whose heading begins with `>` is aligned right."""
    table = Table(box=box.SIMPLE)
    for heading in columns:
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if heading.startswith(">") else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    (console or Console()).print(table)
