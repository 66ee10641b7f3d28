"""`cktf bench` and `cktf table`: a matrix of comparisons, and its table."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cktf.cli.command import make_command
from cktf.cli.options import DataDirOption, TrustCodeOption
from cktf.errors import CktfError, RecipeError
from cktf.user_paths import expand_user_path

if TYPE_CHECKING:
    from cktf.bench import Bench, Cell, Cost

    # Title, why nothing is to be trained, and the cost or why it could not be measured.
    _Line = tuple[str, str, Cost | str | None]

T = TypeVar("T")


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
    interleaved: Annotated[
        int | None,
        typer.Option(
            "--interleaved",
            "--together",
            min=1,
            help="Students that are trained in turn, a step each, from one pass of their teacher.",
        ),
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
    from cktf.bench.cells import build_cells, select_cells
    from cktf.bench.matrix import read_matrix
    from cktf.recipes.files import apply_assignments, refuse_code

    weights = dict(option.partition("=")[::2] for option in teacher or [])
    if not all(weights) or not all(weights.values()) or len(weights) < len(teacher or []):
        given = ", ".join(teacher or [])
        raise RecipeError([f"--teacher takes NAME=FILE, each NAME once; given {given}."])
    number, _, shards = shard.partition("/")
    if not (number.isdigit() and shards.isdigit() and 1 <= int(number) <= int(shards)):
        raise RecipeError([f"--shard takes I/N with I from 1 to N, as 2/8; given {shard!r}."])
    parsed = read_matrix(matrix)
    fields: dict[str, object] = {}
    apply_assignments(fields, settings or [])
    directory = str(data_dir.absolute()) if data_dir else None
    cells = build_cells(parsed, directory, weights, fields)
    if expand_user_path(matrix).exists() and not trust_code:
        for cell in cells:
            refuse_code(cell.fields | {"teacher": cell.teacher.network}, Path(matrix))
    chosen = select_cells(cells, _parse_names(pairs), _parse_names(methods), _parse_names(seeds))
    from cktf.bench import Bench, check_bench, run_bench

    plan = Bench(
        parsed,
        chosen,
        out,
        results or out / "results",
        interleaved or parsed.interleaved,
        (int(number), int(shards)),
        reuse or [],
        trust_code,
    )
    if dry_run:
        check_bench(plan)
    if dry_run or costs:
        _print_costs(plan, measure_finished=costs)
        return
    failed = run_bench(plan, jobs)
    done = sum(map(plan.is_done, plan.cells))
    print(f"{done} of {len(plan.cells)} cells are done. Table: cktf table {plan.results}")
    for name in failed:
        print(f"failed: {name}: see {plan.failure_file(name)}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


@make_command
def table(
    folder: Annotated[Path, typer.Argument(help="The --out folder of cktf bench.")],
    baseline: Annotated[
        str | None, typer.Option(help="The method that others are compared with.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="Print as md or csv.")] = "md",
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write both forms beside the results.")
    ] = True,
) -> None:
    """Print the table of a benchmark: methods down, pairs across."""
    from cktf.bench import compare, csv_rows, markdown, results_dir
    from cktf.files import write_atomically

    comparison = compare(folder, baseline)
    texts = {"md": markdown(comparison), "csv": csv_rows(comparison)}
    if form not in texts:
        raise RecipeError([f"--format {form}: choose {', '.join(texts)}."])
    if write:
        for suffix, text in texts.items():
            write_atomically(results_dir(folder) / f"table.{suffix}", text.encode())
    print(texts[form], end="")


def _parse_names(option: str | None) -> list[str] | None:
    """Split at commas, except inside brackets, as in `KD (1, 1)`."""
    return None if option is None else [n.strip() for n in re.split(r",(?![^(]*\))", option)]


def _print_costs(plan: "Bench", *, measure_finished: bool) -> None:
    """Print every cell with its estimated hours, and the sum of those that are to be trained.

    With `measure_finished`, finished cells are measured too, and costs are saved with the results.
    """
    cells = [cell for group in plan.groups() for cell in group]
    finished = {cell.slug for cell in cells if plan.is_done(cell)}
    total, unknown, reasons = 0.0, 0, set[str]()
    teachers = {cell.teacher.slug for cell in cells}
    for title, state, cost in _list_costs(plan, cells, finished, measure_finished):
        hours, detail = state or "? h", ""
        if isinstance(cost, str):
            reasons.add(cost)
            unknown += not state
        elif cost is not None:
            hours = state or f"{cost.hours:.2f} h"
            total += 0 if state else cost.hours
            detail = f" ({cost.step_seconds * 1e3:.0f} ms a step, {cost.peak_memory_mb:,.0f} MiB)"
        print(f"{title}: {hours}{detail}", flush=True)
    already = f" ({len(finished)} done)" if finished else ""
    more = f", and {unknown} that could not be measured" if unknown else ""
    print(
        f"{len(cells)} cells{already}, {len(teachers)} teachers: "
        f"about {total:.1f} h one by one{more}"
    )
    for reason in sorted(reasons):
        print(f"! {reason}")


def _list_costs(
    plan: "Bench", cells: "list[Cell]", finished: set[str], measure_finished: bool
) -> "Iterator[_Line]":
    from cktf.bench import Cost, cost_key, measure_cell, measure_teacher, read_costs, save_costs
    from cktf.bench.cost import find_cost
    from cktf.engine import RunFolder

    needed = {cell.teacher.slug for cell in cells if cell.slug not in finished}
    for slug, teacher in {cell.teacher.slug: cell.teacher for cell in cells}.items():
        title, state = f"teacher {teacher.name} on {teacher.data}", ""
        if teacher.weights is not None or RunFolder(plan.teacher_dir(teacher)).finished:
            state = "trained already"
        elif slug not in needed:
            state = "all its students are done"
        yield title, state, None if state else _try_measuring(title, measure_teacher, teacher)
    saved, costs = read_costs(plan.results), dict[str, Cost | str]()
    for cell in cells:
        state = "done" if cell.slug in finished else ""
        if state and not measure_finished:
            yield cell.title, state, None
            continue
        key = cost_key(*cell.column, cell.method)
        if key not in costs:
            known = None if measure_finished else find_cost(saved, cell)
            costs[key] = cost = known or _try_measuring(cell.method, measure_cell, cell)
            if measure_finished and not isinstance(cost, str):
                # At once, since a later measurement may be stopped.
                save_costs({key: cost}, plan.results)
        yield cell.title, state, costs[key]


def _try_measuring(title: str, measure: "Callable[[T], Cost]", subject: T) -> "Cost | str":
    """Measure a cost, or return the reason why that failed, so that others are still measured."""
    try:
        return measure(subject)
    except Exception as error:
        kind = "" if isinstance(error, CktfError) else f"{type(error).__name__}: "
        return f"{title}: {kind}{error}"
