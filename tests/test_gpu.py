"""The checks of benchmarks/gpu.py: on a CPU that they see what is off; on a GPU those that matter.

A CPU takes small cases of the same functions.
"""

import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from gpu import CHECKS
from gpu_checks import (
    command_line,
    functions,
    networks,
    objectives,
    sampler,
    speed,
    students,
    synchronization,
)
from gpu_checks.findings import ERROR, OFF, OK, SKIPPED, Findings, relative_error
from gpu_checks.modes import CPUDraws
from gpu_checks.schedule import Check, run_checks
from gpu_checks.tables import documentation, summary
from gpu_checks.training import FLOOR, started_trainer, synthetic_images
from torch.autograd import DeviceType

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def assert_ok(findings):
    record = findings.record()
    assert record["status"] == OK, (record["failures"], record["errors"])


@pytest.mark.parametrize("name", functions.function_names())
@pytest.mark.parametrize("device", DEVICES)
def test_functions_agree_with_float64(name, device):
    findings = Findings(torch.device(device))
    with functions.without_tf32(), findings.case(name):
        functions.compare_function(findings, name, 16)
    assert_ok(findings)
    assert findings.worst["loss"][0] > 0


FEW = [c for c in objectives.cases()[:100] if c.method != "cktf"] + objectives.cases()[27:100:9]


@pytest.mark.parametrize("case", FEW, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_objectives_agree_with_the_cpu(case, device):
    findings = Findings(torch.device(device))
    with functions.without_tf32(), findings.case(str(case)):
        objectives.compare_objective(findings, case)
    assert_ok(findings)


def test_an_objective_that_computes_something_else_is_off(monkeypatch):
    train, scale = objectives._train, iter((1.0, 1.01))

    def scaled(*args):
        factor = next(scale)
        return [(kind, factor * value) for kind, value in train(*args)]

    monkeypatch.setattr(objectives, "_train", scaled)
    findings = Findings(CPU)
    with findings.case("crd"):
        objectives.compare_objective(findings, objectives.Case("crd", {}))
    assert findings.record()["status"] == OFF
    assert {"loss", "gradient", "bank", "normalizer"} <= findings.worst.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("case", synchronization.sync_cases(), ids=synchronization.describe)
def test_no_step_waits_for_the_gpu(case):
    findings = Findings(torch.device("cuda"))
    with findings.case(str(case)):
        synchronization.train_unsynchronized(findings, synthetic_images(1280, 10), *case)
    assert_ok(findings)


@pytest.mark.gpu
def test_a_wait_for_the_gpu_is_seen():
    findings = Findings(torch.device("cuda"))
    with (
        pytest.raises(RuntimeError, match="synchroniz"),
        synchronization._synchronization_is_an_error(findings),
    ):
        torch.ones((), device="cuda").item()


@pytest.mark.parametrize("method", [("fitnet+kd", {"staged": True}), ("cktf+kd", {})])
def test_steps_of_all_phases_are_taken(method, monkeypatch):
    taken = []
    take = synchronization.take_steps
    monkeypatch.setattr(
        synchronization, "take_steps", lambda t, n: (taken.append((t.phase.name, n)), take(t, n))
    )
    findings = Findings(CPU)
    with findings.case("steps"):
        synchronization.train_unsynchronized(findings, synthetic_images(256, 10), "eager", *method)
    assert_ok(findings)
    phases = ["fitnet", "train"] if method[1] else ["train"]
    assert taken == [(phase, count) for phase in phases for count in (2, 1)]


def test_the_floor_has_a_teacher_and_no_transfer():
    images = synthetic_images(64, 10)
    with started_trainer(CPU, images, FLOOR, batch_size=32) as trainer:
        trainer.start_epoch(1)
        (phase,) = trainer.phases
        _, teacher = phase.step.features(next(trainer.train.epoch(1)))
        assert teacher is not None
        assert not teacher.logits.requires_grad
        trainer.train_step()
    assert list(phase.step.objective.terms) == ["ce"]


@pytest.mark.parametrize("device", DEVICES)
def test_sampler_is_uniform(device):
    findings = Findings(torch.device(device))
    sampler.check_sampler(findings)
    assert_ok(findings)


@pytest.mark.parametrize("device", DEVICES)
def test_failing_runs_say_why(device):
    findings = Findings(torch.device(device))
    students.check_failing_runs(findings)
    assert_ok(findings)


@pytest.mark.parametrize(
    "check",
    [
        networks.check_networks,
        students.check_interleaved,
        command_line.check_twenty_steps,
        command_line.check_resumed_runs,
        command_line.check_commands,
    ],
)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.slow
def test_whole_runs(check, device):
    findings = Findings(torch.device(device))
    check(findings)
    assert_ok(findings)


def test_a_command_that_fails_is_an_error(tmp_path):
    findings = Findings(CPU)
    with findings.case("evaluate"):
        command_line.cktf("evaluate", tmp_path / "nowhere")
    assert "cktf evaluate ended with 2" in findings.record()["errors"][0]


def test_tensors_that_differ_are_named():
    a = {"x": torch.zeros(2), "y": torch.ones(1)}
    assert command_line.unequal_tensors(a, {k: v.clone() for k, v in a.items()}) == []
    changed = {"x": torch.tensor([0.0, 1e-30]), "z": torch.ones(1)}
    assert command_line.unequal_tensors(a, changed) == ["x", "y", "z"]


def test_uneven_counts_have_a_small_p():
    expected = torch.full((1000,), 1000.0)
    torch.manual_seed(0)
    even = torch.poisson(expected.double())
    assert sampler.chi_square_p(even, expected) > 1e-3
    even[:300] *= 1.1
    assert sampler.chi_square_p(even, expected) < 1e-3


def test_chi_square_p_is_that_of_the_distribution():
    scipy_stats = pytest.importorskip("scipy.stats")
    counts = torch.tensor([12.0, 7.0, 11.0, 16.0, 4.0])
    expected = torch.full((5,), 10.0)
    right = scipy_stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), 4)
    assert abs(sampler.chi_square_p(counts, expected) - right) < 0.01


def test_draws_of_the_cpu_are_injected():
    torch.manual_seed(0)
    expected = torch.randint(1000, (5,)), torch.empty(5).uniform_()
    torch.manual_seed(0)
    with CPUDraws():
        found = torch.randint(1000, (5,), device="cpu"), torch.empty(5).uniform_()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with CPUDraws():
        assert torch.randint(10, (3,), device="meta").device.type == "meta"
        assert torch.empty(3, device="meta").random_(9).device.type == "meta"


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(
        1 / 34**0.5
    )
    assert relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert relative_error(torch.tensor(float("nan")), torch.tensor(1.0)) == float("inf")


def event(name, device, start=0.0, end=0.0, annotation=False):
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, device_type=device, time_range=span, is_user_annotation=annotation
    )


def test_launches_and_busy_share_are_counted():
    events = [
        event("aten::add", DeviceType.CPU),
        event("cudaLaunchKernel", DeviceType.CPU),
        event("cudaGraphLaunch", DeviceType.CPU),
        event("add_kernel", DeviceType.CUDA, 0, 1000),
        event("mul_kernel", DeviceType.CUDA, 500, 1500),
        event("Optimizer.step", DeviceType.CUDA, 0, 9000, annotation=True),
    ]
    assert speed.summarize(events, 1, ms=3.0) == {"launches": 2, "kernels": 2, "busy_percent": 50}


CHILDREN = (
    Check(1, "one", "gpu_checks.sampler:check_sampler", 60, "parity"),
    Check(2, "none", "gpu_checks.sampler:check_nothing", 60, "parity"),
    Check(3, "late", "gpu_checks.sampler:check_sampler", 0, "timing"),
)


def test_a_check_that_fails_does_not_end_the_others():
    records = {}
    run_checks(CHILDREN, "cpu", 60, lambda check, record: records.update({check.number: record}))
    assert [records[n]["status"] for n in (1, 2, 3)] == [OK, ERROR, SKIPPED]
    assert "check_nothing" in records[2]["errors"][0]
    results = {"machine": "m", "checks": {str(k): v for k, v in records.items()}}
    text = summary(json.loads(json.dumps(results)), CHILDREN)
    assert "check_nothing" in text
    assert "ok       1 one" in text
    assert " ok | " in documentation(results, CHILDREN)
    assert documentation(None, CHECKS).count("not yet measured") == len(CHECKS) + 2


def test_time_ends_a_check_between_cases():
    findings = Findings(CPU, seconds=0.05)
    for number in findings.timed(range(3)):
        with findings.case(str(number)):
            time.sleep(0.06)
    assert findings.left_out == ["1: no time", "2: no time"]
    assert findings.record()["cases"] == 1


def hang(findings):
    with findings.case("first"):
        time.sleep(60)


def die(findings):
    os._exit(7)


@pytest.mark.slow
def test_a_check_that_hangs_or_ends_its_process_is_an_error(monkeypatch):
    monkeypatch.setattr("gpu_checks.schedule.GRACE", 1.0)
    checks = [Check(n, f.__name__, f"test_gpu:{f.__name__}", 10, "parity")
              for n, f in enumerate((hang, die))]  # fmt: skip
    records = {}
    run_checks(checks, "cpu", 60, lambda check, record: records.update({check.number: record}))
    assert "stopped" in records[0]["errors"][0]
    assert "status 7" in records[1]["errors"][0]
