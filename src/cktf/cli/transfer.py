"""`cktf transfer`: a student from a teacher on images without labels, then probes on few labels."""

from typing import Any

from cktf.cli.command import build_run_request, make_command
from cktf.cli.probe import print_label_curves
from cktf.user_paths import shorten_path


@make_command
def transfer(**options: Any) -> None:
    """Train a student without labels; fit classifiers on few labels."""
    from cktf.cli.doctor import show_dry_run
    from cktf.recipes import parse_transfer_recipe, to_yaml
    from cktf.workflows import CURVE, plan_transfer, preview_run, run_transfer

    request = build_run_request("transfer", options)
    recipe = parse_transfer_recipe(request.fields)
    plan = plan_transfer(recipe, request.out, resume=request.resume, trust_code=request.trust_code)
    if request.dry_run:
        show_dry_run(preview_run(recipe.distill_recipe(), plan.components))
        print(to_yaml(plan.recipe), end="")
        return
    run = run_transfer(plan)
    summary: dict[str, Any] = run.summary
    print_label_curves(
        summary["points"], {"scratch": summary["scratch_top1"]}, summary["test_images"]
    )
    print(
        f"{summary['student']} from {summary['teacher']} by {summary['method']} on "
        f"{summary['unlabeled_images']:,} images without labels; scratch: the same student trained "
        f"on the most labels alone, {summary['scratch_epochs']} epochs; floor: the student before "
        "training."
    )
    folder = shorten_path(run.folder)
    plot = folder / CURVE
    print(f"run: {folder}" + (f"; plot: {plot}" if plot.is_file() else ""))
