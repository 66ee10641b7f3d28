"""`cktf train`: a network on labels alone."""

from typing import Annotated

import typer

from cktf.cli.command import reports_errors, train_from_options
from cktf.cli.options import (
    DataDirOption,
    DataOption,
    DebugOption,
    DryRunOption,
    EpochsOption,
    OnNonFiniteOption,
    OutOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
    TrackOption,
    TrustCodeOption,
    ValidationOption,
)


@reports_errors
def train(
    model: Annotated[
        str | None, typer.Option("--model", help="A network: see cktf models.")
    ] = None,
    data: DataOption = None,
    data_dir: DataDirOption = None,
    validation: ValidationOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    out: OutOption = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    resume: ResumeOption = None,
    on_nonfinite: OnNonFiniteOption = None,
    track: TrackOption = None,
    trust_code: TrustCodeOption = False,
    dry_run: DryRunOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a network on labels alone, for example a teacher."""
    given = {
        "model": model,
        "data.name": data,
        "data.dir": data_dir,
        "data.validation": validation,
        "epochs": epochs,
        "seed": seed,
        "runtime.track": track,
        "runtime.on_nonfinite": on_nonfinite,
    }
    train_from_options(
        "train", given, recipe=recipe, settings=settings, out=out, resume=resume, dry_run=dry_run,
        trust_code=trust_code,
    )  # fmt: skip
