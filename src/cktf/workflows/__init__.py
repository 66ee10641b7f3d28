"""What users do: teach, distil, evaluate."""

from cktf.workflows.evaluate import evaluate
from cktf.workflows.run import Run, read_summary
from cktf.workflows.train import distill, run_recipe, teach

__all__ = ["Run", "distill", "evaluate", "read_summary", "run_recipe", "teach"]
