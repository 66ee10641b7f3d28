"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DataOption = Annotated[str | None, typer.Option("--data", help="A data set: see cktf datasets.")]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the data set.")]
ValidationOption = Annotated[
    float | None,
    typer.Option(
        "--validation",
        help="Hold out this fraction of each class of the training images; the epoch that is best "
        "on them is kept.",
    ),
]
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
OnNonFiniteOption = Annotated[
    str | None,
    typer.Option(
        "--on-nonfinite",
        metavar="stop|skip",
        help="At a loss or gradient that is not finite: stop, or skip and count the step.",
    ),
]
TrackOption = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="NAME,…",
        help="Trackers: tensorboard (the default where installed), wandb, mlflow, …; or none.",
    ),
]
TrustCodeOption = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run the Python file or module that a recipe or run names as network."
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
