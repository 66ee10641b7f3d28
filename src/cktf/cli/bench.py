"""`cktf bench` and `cktf table`: a matrix of comparisons, and its table."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cktf.cli.command import make_command
from cktf.cli.options import DataDirOption, TrustCodeOption
from cktf.errors import CktfError, RecipeError
from cktf.user_paths import expand_user_path

if TYPE_CHECKING:
    from cktf.bench import Bench, Cell, Cost


@make_command
def bench(
    matrix: Annotated[
        str, typer.Argument(help="A matrix by name (cpu-cifar10), or its YAML file.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The matrix's folder; several processes may share it.")
    ],
    data_dir: DataDirOption = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Trained weights, in place of training."),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="T:S,…", help="Only these pairs of networks.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="NAME,NAME,…", help="Only these methods.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N,…", help="Only these seeds.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Set a field of every cell's recipe."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 1,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Only the I-th of N shares of the cells.")
    ] = "1/1",
    together: Annotated[
        int | None,
        typer.Option(min=1, help="Students that take turns with one pass of their teacher."),
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of finished runs to take over where recipes are equal."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where results are kept; by default in --out.")
    ] = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="Measure step time and memory; train nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells and estimated hours; train nothing.")
    ] = False,
    trust_code: TrustCodeOption = False,
) -> None:
    """Train the cells of a benchmark matrix that are not done."""
    from cktf.bench import Bench, cells_of, check_bench, chosen, read_matrix, run_bench
    from cktf.recipes import apply_assignments, refuse_code

    read = read_matrix(matrix)
    fields: dict[str, object] = {}
    apply_assignments(fields, settings or [])
    where = None if data_dir is None else str(data_dir.absolute())
    cells = cells_of(read, where, _weights(teacher or []), fields)
    if expand_user_path(matrix).exists() and not trust_code:
        for cell in cells:
            refuse_code(cell.fields | {"teacher": cell.teacher.network}, Path(matrix))
    plan = Bench(
        read,
        chosen(cells, _names(pairs), _names(methods), _seeds(seeds)),
        out,
        results or out / "results",
        together or read.together,
        _shard(shard),
        reuse or [],
        trust_code,
    )
    if dry_run:
        check_bench(plan)
    if dry_run or costs:
        _costs(plan, keep=costs)
        return
    failed = run_bench(plan, jobs)
    done = sum(map(plan.done, plan.cells))
    print(f"{done} of {len(plan.cells)} cells are done. Table: cktf table {plan.results}")
    for name in failed:
        print(f"failed: {name}: see {plan.failure(name)}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


FORMS = {"md": "table.md", "csv": "table.csv", "latex": "table.tex"}


@make_command
def table(
    folder: Annotated[Path, typer.Argument(help="What cktf bench was given as --out.")],
    baseline: Annotated[
        str | None, typer.Option(help="The method that others are compared with.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="What is printed: md, csv or latex.")
    ] = "md",
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write all three beside the results.")
    ] = True,
) -> None:
    """Print the table of a benchmark: methods down, pairs across."""
    from cktf.bench import compare, csv_rows, latex, markdown, results_in
    from cktf.files import write_atomically

    if form not in FORMS:
        raise RecipeError([f"--format {form}: choose {', '.join(FORMS)}."])
    compared = compare(folder, baseline)
    texts = {"md": markdown(compared), "csv": csv_rows(compared), "latex": latex(compared)}
    if write:
        for name, text in texts.items():
            write_atomically(results_in(folder) / FORMS[name], text.encode())
    print(texts[form], end="")


def _weights(given: list[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, file = item.partition("=")
        if not equals or not name or not file:
            raise RecipeError([f"--teacher takes NAME=FILE, given {item!r}."])
        found[name] = file
    return found


def _names(given: str | None) -> list[str] | None:
    """Joined by commas; one inside brackets is part of a name, as in `KD (1, 1)`."""
    return None if given is None else [n.strip() for n in re.split(r",(?![^(]*\))", given)]


def _seeds(given: str | None) -> list[int] | None:
    if given is None:
        return None
    if not all(seed.strip().isdigit() for seed in given.split(",")):
        raise RecipeError([f"--seeds takes numbers joined by commas, given {given!r}."])
    return [int(seed) for seed in given.split(",")]


def _shard(given: str) -> tuple[int, int]:
    number, slash, of = given.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise RecipeError([f"--shard takes I/N with I from 1 to N, as 2/8; given {given!r}."])
    return int(number), int(of)


def _costs(plan: "Bench", *, keep: bool) -> None:
    """Print every cell with its estimated hours, and the sum of those that are to be trained."""
    from cktf.bench import Cost, cost_key, costs_in, measure_teacher
    from cktf.bench.cost import kept_cost
    from cktf.engine import RunFolder

    cells = [cell for group in plan.groups() for cell in group]
    finished = {cell.slug for cell in cells if plan.done(cell)}
    needed = {cell.teacher.slug for cell in cells if cell.slug not in finished}
    total, unknown, why = 0.0, 0, set[str]()
    teachers = {cell.teacher.slug: cell.teacher for cell in cells}
    for slug, teacher in teachers.items():
        name = f"teacher {teacher.name} on {teacher.data}"
        hours = "? h"
        if teacher.weights is not None or RunFolder(plan.out / "teachers" / slug).finished:
            hours = "trained already"
        elif slug not in needed:
            hours = "all its students are done"
        elif isinstance(taken := _tried(name, partial(measure_teacher, teacher)), str):
            unknown += 1
            why.add(taken)
        else:
            hours, total = f"{taken.hours:.2f} h", total + taken.hours
        print(f"{name}: {hours}", flush=True)
    known, found = costs_in(plan.results), dict[str, Cost | str]()
    for cell in cells:
        done = cell.slug in finished
        if done and not keep:
            print(f"{cell.title}: done", flush=True)
            continue
        key = cost_key(*cell.column, cell.method)
        if key not in found:
            kept = None if keep else kept_cost(known, cell)
            found[key] = kept or _measured(cell, key, plan.results if keep else None)
        cost = found[key]
        if isinstance(cost, str):
            why.add(cost)
            unknown += not done
            print(f"{cell.title}: {'done' if done else '? h'}", flush=True)
            continue
        total += 0 if done else cost.hours
        print(
            f"{cell.title}: {'done' if done else f'{cost.hours:.2f} h'} "
            f"({cost.step_seconds * 1e3:.0f} ms a step, {cost.peak_memory_mb:,.0f} MiB)",
            flush=True,
        )
    already = f" ({len(finished)} done)" if finished else ""
    more = f", and {unknown} that could not be measured" if unknown else ""
    print(
        f"{len(cells)} cells{already}, {len(teachers)} teachers: "
        f"about {total:.1f} h one by one{more}"
    )
    for reason in sorted(why):
        print(f"! {reason}")


def _measured(cell: "Cell", key: str, place: Path | None) -> "Cost | str":
    """Its cost, or why there is none; kept at once, since what comes later may be stopped."""
    from cktf.bench import keep_costs, measure

    cost = _tried(cell.method, partial(measure, cell))
    if place is not None and not isinstance(cost, str):
        keep_costs({key: cost}, place)
    return cost


def _tried(name: str, measure: "Callable[[], Cost]") -> "Cost | str":
    """What is measured, or why it could not be: one that fails is not the others' end."""
    try:
        return measure()
    except CktfError as error:
        return f"{name}: {error}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
