"""What users do: teach, distil, transfer, probe, evaluate."""

from cktf.workflows.assembly import assemble
from cktf.workflows.curve import CURVE, draw_curve
from cktf.workflows.evaluation import evaluate, size_of_training, tested_on
from cktf.workflows.inspection import Inspection, inspect
from cktf.workflows.objects import Objects
from cktf.workflows.probing import Probed, probe, probe_run
from cktf.workflows.rehearsal import Rehearsal, rehearse
from cktf.workflows.run import Run
from cktf.workflows.taught import noted
from cktf.workflows.together import SHARED, distill_together
from cktf.workflows.train import distill, prepare, run_recipe, teach
from cktf.workflows.transferring import Planned, Transferred, carry_out, plan, transfer

__all__ = [
    "CURVE",
    "SHARED",
    "Inspection",
    "Objects",
    "Planned",
    "Probed",
    "Rehearsal",
    "Run",
    "Transferred",
    "assemble",
    "carry_out",
    "distill",
    "distill_together",
    "draw_curve",
    "evaluate",
    "inspect",
    "noted",
    "plan",
    "prepare",
    "probe",
    "probe_run",
    "rehearse",
    "run_recipe",
    "size_of_training",
    "teach",
    "tested_on",
    "transfer",
]
