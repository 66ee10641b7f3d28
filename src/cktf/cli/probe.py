"""`cktf probe`: what a network's features are worth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cktf.cli.command import build_run_request, reports_errors, train_from_options
from cktf.cli.options import (
    DataDirOption,
    DebugOption,
    DryRunOption,
    EpochsOption,
    ResumeOption,
    SeedOption,
    SetOption,
    TrustCodeOption,
)
from cktf.errors import RecipeError

LabeledOption = Annotated[
    str | None, typer.Option("--labeled", help="A data set whose labels are learned.")
]
TestOption = Annotated[
    str | None, typer.Option("--test", help="Another whose test images count; else its own.")
]
LabelsOption = Annotated[
    str | None,
    typer.Option(metavar="N,N,…", help="Labels of each class, for a curve; else all of them."),
]
DrawsOption = Annotated[
    int | None, typer.Option("--draws", help="Random choices of labels at each point: 5.")
]


@reports_errors
def probe(
    run: Annotated[Path, typer.Argument(help="A run folder or a file of weights.")],
    labeled: LabeledOption = None,
    test: TestOption = None,
    data_dir: DataDirOption = None,
    labels_per_class: LabelsOption = None,
    draws: DrawsOption = None,
    sgd: Annotated[
        bool, typer.Option("--sgd", help="Train the classifier by SGD, images augmented.")
    ] = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train all of the network by SGD.")
    ] = False,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="By default a folder in RUN, or beside the file.")
    ] = None,
    settings: SetOption = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    trust_code: TrustCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Fit a linear classifier on a network's frozen features, and test it.

    By default a logistic regression on features that are computed once, its regularization chosen
    by cross-validation on the labeled images; with --sgd or --finetune a run of its own.
    """
    given = {"data.name": labeled, "data.test": test, "data.dir": data_dir, "seed": seed}
    counts = get_labels(labels_per_class)
    if labeled is None and resume is None:
        raise RecipeError(["labeled: is needed. Give --labeled, a data set with labels."])
    if resume is None:
        from cktf.recipes import find_weights_file
        from cktf.workflows import training_image_size

        # Anything else is no network that was trained.
        find_weights_file(str(run))

        # As `cktf evaluate` shows them.
        given["data.image_size"] = training_image_size(run)
    if sgd or finetune:
        _check(counts, draws, sgd and finetune)
        name = "finetuned" if finetune else "probe-sgd"
        given |= {
            "model": run.absolute(),
            "trains": "all" if finetune else "classifier",
            # What was fitted on other labels is no start on these.
            "new_classifier": True,
            "data.per_class": counts[0] if counts else None,
            "epochs": epochs,
        }
        train_from_options(
            "train", given, recipe=None, settings=settings, resume=resume, dry_run=dry_run,
            trust_code=trust_code,
            out=out or (None if resume not in (None, "auto") else _beside(run) / name),
        )  # fmt: skip
        return
    given |= {"model": run.absolute(), "trains": "classifier", "epochs": None}
    if epochs is not None or resume is not None or dry_run:
        raise RecipeError(
            ["--epochs, --resume and --dry-run are for training: add --sgd or --finetune."]
        )
    _closed(given, counts, draws, settings, out or _beside(run) / "probe", trust_code)


def _check(counts: Sequence[int] | None, draws: int | None, both: bool) -> None:
    if both:
        raise RecipeError(["--sgd, --finetune: give one of them."])
    if draws is not None or (counts and len(counts) > 1):
        raise RecipeError(
            ["--draws, --labels-per-class: training takes one number of labels and one draw, "
             "which --seed decides. Leave --sgd away for a curve."]
        )  # fmt: skip


def _beside(run: Path) -> Path:
    """Where the results of a probe go: inside the run folder, or beside a file."""
    return run if run.is_dir() else run.parent


def _closed(
    given: dict[str, Any],
    counts: Sequence[int] | None,
    draws: int | None,
    settings: list[str] | None,
    out: Path,
    trust_code: bool,
) -> None:
    from cktf.recipes import TrainRecipe, parse_recipe
    from cktf.workflows import CURVE, probe_run

    wanted = build_run_request(
        "train",
        given,
        recipe=None,
        settings=settings,
        out=out,
        resume=None,
        trust_code=trust_code,
    )
    recipe = parse_recipe(wanted.fields)
    assert isinstance(recipe, TrainRecipe)
    draws = 5 if draws is None else draws
    probed = probe_run(recipe, counts or (), draws, out, trust_code=trust_code)
    points = {"features": probed.points()}
    table(points, {}, probed.test_images)
    plot = out / CURVE
    print(f"{out / 'summary.json'}" + (f"; plot: {plot}" if plot.is_file() else ""))


def get_labels(text: str | None) -> list[int] | None:
    """Numbers of labels from `1,5,20`.

    >>> get_labels("1,5")
    [1, 5]
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise RecipeError([f"--labels-per-class takes numbers such as 1,5,20; given {text!r}."])
    return [int(part) for part in parts]


def table(
    points: Mapping[str, Sequence[Mapping[str, Any]]], levels: Mapping[str, float], images: int
) -> None:
    """Print accuracies, a row for each number of labels and a column for each network."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=box.SIMPLE)
    for name in ("labels of a class", *points, *levels):
        shown.add_column(name, justify="right")
    lines = list(zip(*points.values(), strict=True))
    for number, row in enumerate(lines, 1):
        count = row[0]["labels_per_class"]
        cells = [_mean(point) for point in row]
        marks = [f"{level:.2f}" if number == len(lines) else "" for level in levels.values()]
        shown.add_row("all" if count is None else f"{count:,}", *cells, *marks)
    console = Console()
    console.print(shown)
    console.print(
        f"Top-1 in %, mean ± standard deviation over draws of labels; {images:,} test images.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _mean(point: Mapping[str, Any]) -> str:
    spread = "" if point["sd"] is None else f" ± {point['sd']:.2f}"
    return f"{point['mean']:.2f}{spread}"
