"""`cktf distill`: a student from a teacher."""

from typing import Any

from cktf.cli.command import build_run_request, make_command, run_and_report
from cktf.errors import RecipeError


@make_command
def distill(**options: Any) -> None:
    """Train a student from a teacher."""
    if options["data"] and options["unlabeled"]:
        raise RecipeError(["--data, --unlabeled: give one of them, the images to train on."])
    run_and_report(build_run_request("distill", options))
