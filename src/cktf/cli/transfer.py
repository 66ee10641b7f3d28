"""`cktf transfer`: a student from a teacher on images without labels, then probes on few labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cktf.cli.command import build_run_request, reports_errors
from cktf.cli.distill import (
    EmbeddingOption,
    MethodOption,
    StudentOption,
    StudentSizeOption,
    TapsOption,
    TeacherCacheOption,
    TeacherOption,
    TeacherSizeOption,
    TeacherWeightsOption,
    cache_fields,
)
from cktf.cli.options import (
    DataDirOption,
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
)
from cktf.cli.probe import DrawsOption, LabeledOption, LabelsOption, TestOption, get_labels, table

if TYPE_CHECKING:
    from cktf.workflows import Transferred


@reports_errors
def transfer(
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
    unlabeled: Annotated[
        str | None, typer.Option("--unlabeled", help="Images whose labels are not read.")
    ] = None,
    labeled: LabeledOption = None,
    test: TestOption = None,
    data_dir: DataDirOption = None,
    labels_per_class: LabelsOption = None,
    draws: DrawsOption = None,
    epochs: EpochsOption = None,
    scratch_epochs: Annotated[
        int | None,
        typer.Option("--scratch-epochs", help="Of the student trained on the labels alone."),
    ] = None,
    seed: SeedOption = None,
    out: OutOption = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    resume: ResumeOption = None,
    dry_run: DryRunOption = False,
    track: TrackOption = None,
    on_nonfinite: OnNonFiniteOption = None,
    trust_code: TrustCodeOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a student on images without labels, and classify with its features on few labels."""
    from cktf.cli.doctor import show_dry_run
    from cktf.recipes import parse_transfer_recipe, to_yaml
    from cktf.workflows import carry_out, plan, preview_run

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
        "data.name": unlabeled,
        "data.dir": data_dir,
        "labeled.name": labeled,
        "labeled.test": test,
        "labels_per_class": get_labels(labels_per_class),
        "draws": draws,
        "epochs": epochs,
        "scratch_epochs": scratch_epochs,
        "seed": seed,
        "runtime.track": track,
        "runtime.on_nonfinite": on_nonfinite,
    }
    wanted = build_run_request(
        "transfer", given, recipe=recipe, settings=settings, out=out, resume=resume,
        trust_code=trust_code,
    )  # fmt: skip
    parsed = parse_transfer_recipe(wanted.fields)
    planned = plan(parsed, wanted.out, resume=wanted.continued, trust_code=trust_code)
    if dry_run:
        show_dry_run(preview_run(parsed.distilling(), planned.parts))
        print(to_yaml(planned.recipe), end="")
        return
    _report(carry_out(planned))


def _report(done: "Transferred") -> None:
    """The label curve of every network, and where it all is."""
    from cktf.workflows import CURVE

    summary: dict[str, Any] = done.summary
    table(summary["points"], {"scratch": summary["scratch_top1"]}, summary["test_images"])
    print(
        f"{summary['student']} from {summary['teacher']} by {summary['method']} on "
        f"{summary['unlabeled_images']:,} images without labels; scratch: the same student on the "
        f"most labels alone, {summary['scratch_epochs']} epochs; floor: before it learned anything."
    )
    plot = done.folder / CURVE
    print(f"run: {done.folder}" + (f"; plot: {Path(plot)}" if plot.is_file() else ""))
