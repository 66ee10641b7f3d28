"""What users do: teach, distil, evaluate."""

from cktf.workflows.evaluation import evaluate
from cktf.workflows.inspection import Inspection, inspect
from cktf.workflows.rehearsal import Rehearsal, rehearse
from cktf.workflows.run import Run, assemble
from cktf.workflows.together import distill_together
from cktf.workflows.train import Objects, distill, prepare, run_recipe, teach

__all__ = [
    "Inspection",
    "Objects",
    "Rehearsal",
    "Run",
    "assemble",
    "distill",
    "distill_together",
    "evaluate",
    "inspect",
    "prepare",
    "rehearse",
    "run_recipe",
    "teach",
]
