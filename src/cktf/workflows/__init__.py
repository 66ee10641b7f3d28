"""The workflows: teach, distill, transfer, probe, evaluate."""

from cktf.workflows.dry_run import DryRun, preview_run
from cktf.workflows.evaluation import evaluate, load_test_section, training_image_size
from cktf.workflows.inspection import inspect
from cktf.workflows.interleaved import SHARED, distill_interleaved
from cktf.workflows.label_curve import CURVE, draw_curve
from cktf.workflows.linear_probe import ProbeResult, probe, probe_run
from cktf.workflows.longer_run import continue_with_epochs
from cktf.workflows.objective_setup import set_up_objective
from cktf.workflows.run import Run
from cktf.workflows.teacher_ref import read_teacher_ref
from cktf.workflows.train import distill, prepare, run_recipe, teach
from cktf.workflows.transfer_learning import TransferPlan, plan_transfer, run_transfer, transfer
from cktf.workflows.user_objects import UserObjects

__all__ = [
    "CURVE",
    "SHARED",
    "DryRun",
    "ProbeResult",
    "Run",
    "TransferPlan",
    "UserObjects",
    "continue_with_epochs",
    "distill",
    "distill_interleaved",
    "draw_curve",
    "evaluate",
    "inspect",
    "load_test_section",
    "plan_transfer",
    "prepare",
    "preview_run",
    "probe",
    "probe_run",
    "read_teacher_ref",
    "run_recipe",
    "run_transfer",
    "set_up_objective",
    "teach",
    "training_image_size",
    "transfer",
]
