"""`cktf train`: a network on labels alone."""

from typing import Any

from cktf.cli.command import build_run_request, make_command, run_and_report


@make_command
def train(**options: Any) -> None:
    """Train a network on labels alone, for example a teacher."""
    run_and_report(build_run_request("train", options))
