"""Students: interleaved as alone, compiled as not, and the errors of runs that cannot go on."""

import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import cktf
from cktf.engine import Callback, Trainer
from cktf.errors import CktfError
from cktf.recipes import DistillRecipe, parse_recipe
from cktf.workflows import distill_interleaved
from cktf.workflows.train import run_recipe
from gpu_checks.command_line import STUDENT, save_teacher, unequal_tensors
from gpu_checks.findings import Findings, relative_error
from gpu_checks.modes import without_tf32
from gpu_checks.training import runtime_fields, started_trainer, synthetic_images, take_steps

INTERLEAVED, PER_CLASS = ("kd", "crd+kd", "cktf+kd"), 16
COMPILED, COMPILED_TOLERANCE, COMPILED_STEPS = ("kd", "cktf+kd"), 1e-4, 8
NONFINITE_STEP = 7


def _contrast(method: str) -> dict[str, dict[str, Any]]:
    name = method.partition("+")[0]
    return {name: {"negatives": 128}} if name in ("crd", "cktf") else {}


def check_interleaved(findings: Findings) -> None:
    """Three students of one teacher, trained in turn, end as each alone, bit for bit."""
    with tempfile.TemporaryDirectory() as folder, findings.case("three students"):
        root = Path(folder)
        teacher = save_teacher(root / "teacher")
        recipes = [
            cast(DistillRecipe, parse_recipe({
                "kind": "distill", "teacher": str(teacher), "student": STUDENT, "method": method,
                "options": _contrast(method), "epochs": 1,
                "data": {"name": "fashion-mini", "per_class": PER_CLASS, "batch_size": 32},
                "runtime": {
                    "device": findings.device.type, "deterministic": True, "track": "none"
                },
            }))
            for method in INTERLEAVED
        ]  # fmt: skip
        alone = [
            run_recipe(recipe, root / f"alone-{i}", show=False).student.state_dict()
            for i, recipe in enumerate(recipes)
        ]
        together = distill_interleaved(
            [(recipe, root / f"together-{i}") for i, recipe in enumerate(recipes)]
        )
        for method, expected, run in zip(INTERLEAVED, alone, together, strict=True):
            different = unequal_tensors(expected, run.student.state_dict())
            findings.require(not different, f"{method}: {len(different)} tensors differ")


def check_compiled(findings: Findings) -> None:
    """The first loss of compiled networks in float32 is eager's, and nothing compiles again."""
    images = synthetic_images(32 * (COMPILED_STEPS + 1), 10)
    for method in findings.timed(COMPILED if findings.is_cuda else COMPILED[1:]):
        with findings.case(method), without_tf32():
            expected, found = (_losses(findings, images, method, c) for c in (False, True))
            findings.compare("first loss", found[0], expected[0], COMPILED_TOLERANCE)
            findings.figures[f"{method}, last loss off by"] = (
                f"{relative_error(found[-1], expected[-1]):.1e}"
            )


def _losses(findings: Findings, images: Any, method: str, compile: bool) -> list[Tensor]:
    """The loss of each step; an error where a step after the third compiles."""
    runtime = runtime_fields(compile=compile, precision="float32", graph="off")
    found = []
    with started_trainer(
        findings.device, images, method, _contrast(method), batch_size=32, runtime=runtime
    ) as trainer:
        trainer.start_epoch(1)
        for step in range(COMPILED_STEPS):
            before = 0 if trainer.metrics.sums is None else trainer.metrics.sums[0].item()
            with torch._dynamo.config.patch(error_on_recompile=step > 2):
                take_steps(trainer, 1)
            assert trainer.metrics.sums is not None
            found.append(trainer.metrics.sums[0].cpu() - before)
    return found


class _Hungry(nn.Module):
    """A network that asks for more memory than there is, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.is_hungry = cktf.models.create(STUDENT, 10), False

    def forward(self, images: Tensor) -> Tensor:
        if self.is_hungry:
            torch.empty(1 << 46, device=images.device)
        logits: Tensor = self.network(images)
        return logits


class _AtStep(Callback):
    """Changes the student before one step."""

    def __init__(self, step: int, kind: str) -> None:
        self.step, self.kind = step, kind

    @torch.no_grad()
    def on_step_start(self, trainer: Trainer) -> None:
        """Make it hungry, or spoil a weight."""
        if trainer.position.step + 1 == self.step:
            if self.kind == "memory":
                trainer.student.is_hungry = True  # type: ignore[assignment]
            else:
                next(trainer.student.parameters()).fill_(float("nan"))


def check_failing_runs(findings: Findings) -> None:
    """Too little memory, and a loss that is not finite, end a run with the right message."""
    expected = {
        "memory": f"Memory of {findings.device.type} is not enough for batches of 32",
        "nonfinite": f"not finite at step {NONFINITE_STEP} of epoch 1",
    }
    # A captured graph does not call the network again, which then asks for no memory.
    for kind, mode in (("memory", "off"), ("nonfinite", "off"), ("nonfinite", "auto")):
        with findings.case(f"{kind}, graph {mode}"):
            message = _error_of_run(findings, kind, runtime_fields(graph=mode))
            findings.require(expected[kind] in message, f"message {message!r}")
    findings.require(findings.device_works(), "the device takes no more work")


def _error_of_run(findings: Findings, kind: str, fields: dict[str, str]) -> str:
    """The message with which a run ends."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "data.batch_size": 32, "runtime.device": findings.device.type, "runtime.track": "none",
            **{f"runtime.{name}": value for name, value in fields.items()},
        }  # fmt: skip
        try:
            cktf.teach(
                _Hungry(), train=synthetic_images(32 * 30, 10), epochs=1, out=Path(folder) / "run",
                overrides=overrides, show=False, callbacks=[_AtStep(NONFINITE_STEP, kind)],
            )  # fmt: skip
        except CktfError as error:
            return str(error)
    return "none: the run ended well"
