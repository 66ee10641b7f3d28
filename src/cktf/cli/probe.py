"""`cktf probe`: a linear classifier on a network's features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cktf.cli.command import build_run_request, make_command, print_table, run_and_report
from cktf.cli.options import DRAWS_HELP, LABELS_PER_CLASS_HELP, parse_label_counts
from cktf.errors import RecipeError


@make_command
def probe(
    run: Annotated[Path, typer.Argument(help="A run folder or a weights file.")],
    sgd: Annotated[
        bool, typer.Option("--sgd", help="Train the classifier by SGD on augmented images.")
    ] = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train the whole network by SGD.")
    ] = False,
    labels_per_class: Annotated[
        str | None, typer.Option(metavar="N,N,…", help=LABELS_PER_CLASS_HELP)
    ] = None,
    draws: Annotated[int | None, typer.Option(help=DRAWS_HELP)] = None,
    **options: Any,
) -> None:
    """Fit and test a linear classifier on a network's features.

    By default this is a logistic regression on features that are computed once; cross-validation on
    the labeled images chooses its regularization. --sgd and --finetune train in a run folder.
    """
    label_counts = [] if labels_per_class is None else parse_label_counts(labels_per_class)
    trained = sgd or finetune
    if options["labeled"] is None and options["resume"] is None:
        raise RecipeError(["labeled: is needed. Give --labeled, a data set with labels."])
    if sgd and finetune:
        raise RecipeError(["--sgd, --finetune: give one of them."])
    if trained and (draws is not None or len(label_counts) > 1):
        raise RecipeError(
            ["--draws, --labels-per-class: training takes one number of labels and one draw, "
             "which --seed decides. Leave out --sgd for a curve."]
        )  # fmt: skip
    if not trained and (
        options["epochs"] is not None or options["resume"] is not None or options["dry_run"]
    ):
        raise RecipeError(
            ["--epochs, --resume and --dry-run are for training: add --sgd or --finetune."]
        )
    folder = run if run.is_dir() else run.parent
    name = "finetuned" if finetune else "probe-sgd" if sgd else "probe"
    if options["resume"] in (None, "auto"):
        options["out"] = options["out"] or folder / name
    fields: dict[str, Any] = {
        "model": str(run.absolute()),
        "trains": "all" if finetune else "classifier",
    }
    if trained:
        # A classifier of the same classes, which the network may have, is replaced as well.
        fields |= {"new_classifier": True, "data.per_class": next(iter(label_counts), None)}
    from cktf.recipes import TrainRecipe, find_weights_file, parse_recipe
    from cktf.workflows import CURVE, probe_run, training_image_size

    if options["resume"] is None:
        find_weights_file(str(run))
        # Images as `cktf evaluate` shows them.
        fields["data.image_size"] = training_image_size(run)
    request = build_run_request("probe", options, fields)
    if trained:
        run_and_report(request)
        return
    recipe, out = parse_recipe(request.fields), request.out
    assert isinstance(recipe, TrainRecipe) and out is not None
    num_draws = 5 if draws is None else draws
    probed = probe_run(recipe, label_counts, num_draws, out, trust_code=request.trust_code)
    print_label_curves({"features": probed.points()}, {}, probed.test_images)
    plot = out / CURVE
    print(f"{out / 'summary.json'}" + (f"; plot: {plot}" if plot.is_file() else ""))


def print_label_curves(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    full_label_top1: Mapping[str, float],
    num_test_images: int,
) -> None:
    """Print accuracies, a row for each number of labels and a column for each network.

    Args:
        curves: points of each network by its name.
        full_label_top1: top-1 in % of networks that were trained on the most labels alone.
        num_test_images: for the note below the table.
    """
    rows = []
    for points in zip(*curves.values(), strict=True):
        count = points[0]["labels_per_class"]
        cells = ["all" if count is None else f"{count:,}"]
        for point in points:
            spread = "" if point["sd"] is None else f" ± {point['sd']:.2f}"
            cells.append(f"{point['mean']:.2f}{spread}")
        rows.append(cells + [""] * len(full_label_top1))
    rows[-1][len(curves) + 1 :] = [f"{top1:.2f}" for top1 in full_label_top1.values()]
    names = ["labels of a class", *curves, *full_label_top1]
    print_table([f">{name}" for name in names], rows)
    print(
        f"Top-1 in %, mean ± standard deviation over draws of labels; {num_test_images:,} test "
        "images."
    )
