"""`cktf distill`: a student from a teacher."""

from typing import Annotated, Any

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
from cktf.errors import RecipeError

TapsOption = Annotated[
    str | None,
    typer.Option(metavar="PATH,PATH,…", help="Modules that end its stages; else they are found."),
]

EmbeddingOption = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="What its classifier reads, as head:input; else found."),
]

TeacherOption = Annotated[
    str | None, typer.Option("--teacher", help="A run folder, a file of weights, or a network.")
]
TeacherWeightsOption = Annotated[
    str | None, typer.Option("--teacher-weights", help="A file, for a teacher by name.")
]
StudentOption = Annotated[
    str | None,
    typer.Option(
        "--student",
        help="A network: cktf models, timm:NAME, torchvision:NAME, file.py:function.",
    ),
]
MethodOption = Annotated[
    str | None, typer.Option("--method", help="Names joined by +: see cktf methods.")
]
TeacherSizeOption = Annotated[
    int | None, typer.Option("--teacher-size", help="Pixels that the teacher sees on a side.")
]
StudentSizeOption = Annotated[
    int | None, typer.Option("--student-size", help="Likewise the student, of the same images.")
]
TeacherCacheOption = Annotated[
    str | None,
    typer.Option(
        "--teacher-cache",
        metavar="views=N[,dir=DIR]",
        help="Keep the teacher's outputs for N views of each image on disk.",
    ),
]


def cache_fields(text: str | None) -> dict[str, Any]:
    """Fields of the recipe from `views=8,dir=PATH`.

    >>> cache_fields("views=8")
    {'data.views': 8, 'teacher_cache': 'auto'}
    """
    if text is None:
        return {}
    given = dict(part.strip().partition("=")[::2] for part in text.split(","))
    views = given.pop("views", "")
    folder = given.pop("dir", "auto")
    if given or not (views.isdecimal() and int(views)) or not folder:
        raise RecipeError([f"--teacher-cache takes views=8 or views=8,dir=PATH; given {text!r}."])
    return {"data.views": int(views), "teacher_cache": folder}


@reports_errors
def distill(
    teacher: TeacherOption = None,
    teacher_weights: TeacherWeightsOption = None,
    student: StudentOption = None,
    student_taps: TapsOption = None,
    teacher_taps: TapsOption = None,
    student_embedding: EmbeddingOption = None,
    teacher_embedding: EmbeddingOption = None,
    teacher_size: TeacherSizeOption = None,
    student_size: StudentSizeOption = None,
    teacher_cache: TeacherCacheOption = None,
    method: MethodOption = None,
    data: DataOption = None,
    unlabeled: Annotated[
        str | None,
        typer.Option("--unlabeled", help="In place of --data: images whose labels are not read."),
    ] = None,
    data_dir: DataDirOption = None,
    validation: ValidationOption = None,
    epochs: EpochsOption = None,
    init_epochs: Annotated[
        int | None,
        typer.Option("--init-epochs", help="Of methods that first initialize: ab, fsp, ft."),
    ] = None,
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
    """Train a student from a teacher."""
    if data and unlabeled:
        raise RecipeError(["--data, --unlabeled: give one of them, the images to train on."])
    given = {
        "teacher": teacher,
        "teacher_weights": teacher_weights,
        "student": student,
        "student_taps": student_taps and student_taps.split(","),
        "teacher_taps": teacher_taps and teacher_taps.split(","),
        "student_embedding": student_embedding,
        "teacher_embedding": teacher_embedding,
        "teacher_size": teacher_size,
        "student_size": student_size,
        **cache_fields(teacher_cache),
        "method": method,
        "data.name": unlabeled or data,
        "data.labels": False if unlabeled else None,
        "data.dir": data_dir,
        "data.validation": validation,
        "epochs": epochs,
        "init_epochs": init_epochs,
        "seed": seed,
        "runtime.track": track,
        "runtime.on_nonfinite": on_nonfinite,
    }
    train_from_options(
        "distill", given, recipe=recipe, settings=settings, out=out, resume=resume, dry_run=dry_run,
        trust_code=trust_code,
    )  # fmt: skip
