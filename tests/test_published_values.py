"""Losses and gradients against those that the published implementations give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cktf import functional
from cktf.batch import Batch
from cktf.functional import kd_loss
from cktf.objectives import CKTF, CRD
from cktf.objectives.vid import VID
from cktf.taps import Features

FIXTURES = Path(__file__).parent / "fixtures"
LOSS, GRADIENT = 1e-4, 1e-3


class Fixture:
    """One file of seeded inputs and expected values, as tensors."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(FIXTURES / f"{name}.npz")

    def __call__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def leaf(self, key: str) -> Tensor:
        return self(key).clone().requires_grad_()


def error(found: Tensor | None, expected: Tensor) -> float:
    """Largest error relative to the largest expected value."""
    assert found is not None
    assert found.shape == expected.shape
    return float((found.detach() - expected).abs().max() / expected.abs().max())


@pytest.fixture
def report(record_property, capsys):
    """Checks the relative error of a loss, or of a gradient, keeps it and prints it."""

    def check(name: str, found: Tensor | None, expected: Tensor) -> None:
        value = error(found, expected)
        record_property(name, value)
        with capsys.disabled():
            print(f"\n    {name}: relative error {value:.1e}", end="")
        assert value <= (GRADIENT if "grad" in name else LOSS), name

    return check


def test_kd(report):
    fixture = Fixture("kd")
    student = fixture.leaf("student_logits")
    loss = kd_loss(student, fixture("teacher_logits"), float(fixture("temperature")))
    loss.backward()
    report("kd loss", loss, fixture("loss"))
    report("kd gradient", student.grad, fixture("grad"))


def test_crd_two_steps(report):
    f = Fixture("crd")
    crd = CRD(
        12, 20, 200, embedding_dim=16, negatives=50,
        temperature=float(f("temperature")), momentum=float(f("momentum")),
    )  # fmt: skip
    names = ["student_head.weight", "student_head.bias", "teacher_head.weight", "teacher_head.bias"]
    with torch.no_grad():
        for name in names:
            crd.get_parameter(name).copy_(f(name.replace(".", "_")))
        crd.student_bank.copy_(f("student_bank"))
        crd.teacher_bank.copy_(f("teacher_bank"))
    for step in (0, 1):
        crd.zero_grad()
        student, teacher = f.leaf(f"student_{step}"), f.leaf(f"teacher_{step}")
        loss = crd.loss(student, teacher, f(f"index_{step}"), f(f"contrast_index_{step}"))
        loss.backward()
        crd.after_step()
        report(f"crd step {step} loss", loss, f(f"loss_{step}"))
        values = {
            f"grad_{step}": student.grad,
            f"grad_student_head_{step}": crd.student_head.weight.grad,
            f"grad_teacher_head_{step}": crd.teacher_head.weight.grad,
            f"student_bank_after_{step}": crd.student_bank,
            f"teacher_bank_after_{step}": crd.teacher_bank,
            f"student_normalizer_{step}": crd.student_normalizer,
            f"teacher_normalizer_{step}": crd.teacher_normalizer,
        }
        for key, value in values.items():
            report(f"crd {key}", value, f(key))
        assert teacher.grad is None


@pytest.mark.parametrize("match", ["last", "smallest"])
def test_cktf(report, match):
    f = Fixture(f"cktf_{match}")
    stages = tuple(f.leaf(f"student_block_{k}") for k in range(3))
    blocks = tuple(tuple(f(f"teacher_block_{k}_{j}") for j in range(3)) for k in range(3))
    stem, embedding = f.leaf("stem_student"), f.leaf("embedding_student")
    logits = torch.zeros(8, 10)
    student = Features(logits, embedding, stem, stages)
    teacher = Features(
        logits, f("embedding_teacher"), f("stem_teacher"), tuple(b[-1] for b in blocks), blocks
    )
    cktf = CKTF(
        student, teacher, 200, beta=float(f("beta")), theta=float(f("theta")), match=match,
        embedding_dim=16, negatives=50, temperature=float(f("temperature")),
    )  # fmt: skip
    with torch.no_grad():
        for i, pair in enumerate(cktf.pairs):
            for side in ("student", "teacher"):
                pair.get_parameter(f"{side}_head.weight").copy_(f(f"{side}_head_weight_{i}"))
                pair.get_parameter(f"{side}_head.bias").copy_(f(f"{side}_head_bias_{i}"))
                pair.get_buffer(f"{side}_bank").copy_(f(f"{side}_bank_{i}"))
    loss = cktf.loss(student, teacher, f("index"), f("contrast_index"))
    loss.total.backward()
    terms = list(loss.terms.values())
    report(f"cktf {match} loss", loss.total, f("loss"))
    report(f"cktf {match} penultimate", terms[-1], f("loss_penultimate"))
    report(f"cktf {match} modules", torch.stack(terms[:-1]), f("loss_modules"))
    report(f"cktf {match} stem gradient", stem.grad, f("grad_stem_student"))
    report(f"cktf {match} embedding gradient", embedding.grad, f("grad_embedding_student"))
    for k, stage in enumerate(stages):
        report(f"cktf {match} module {k + 1} gradient", stage.grad, f(f"grad_student_block_{k}"))


@pytest.mark.parametrize("name", ["at", "nst", "ab", "fsp", "kdsvd"])
def test_lists_of_maps(report, name):
    f = Fixture(name)
    count = sum(key.startswith("student") for key in f.arrays)
    student = [f.leaf(f"student_{k}") for k in range(count)]
    teacher = [f(f"teacher_{k}") for k in range(count)]
    loss = getattr(functional, f"{name}_loss")(student, teacher)
    report(f"{name} loss", loss, f("loss"))
    if name != "kdsvd":
        loss.backward()
        for k, leaf in enumerate(student):
            report(f"{name} gradient {k}", leaf.grad, f(f"grad_{k}"))


@pytest.mark.parametrize("name", ["sp", "cc", "rkd", "pkt", "ft"])
def test_pairs(report, name):
    f = Fixture(name)
    student = f.leaf("student")
    loss = getattr(functional, f"{name}_loss")(student, f("teacher"))
    loss.backward()
    report(f"{name} loss", loss, f("loss"))
    report(f"{name} gradient", student.grad, f("grad"))


def test_vid(report):
    """With its regressor, through the objective."""
    f = Fixture("vid")
    vid = VID([16], [24])
    stage = vid.stages[0]
    with torch.no_grad():
        for k in (1, 2, 3):
            stage.mean[2 * k - 2].weight.copy_(f(f"conv{k}"))
        stage.log_scale.copy_(f("log_scale"))
    student, logits = f.leaf("student"), torch.zeros(8, 10)
    index = torch.arange(8)
    loss = vid(
        Features(logits, stages=(student,)),
        Features(logits, stages=(f("teacher"),)),
        Batch(logits, index, index),
    )
    loss.total.backward()
    report("vid loss", loss.total, f("loss"))
    report("vid gradient", student.grad, f("grad"))
    report("vid scale gradient", stage.log_scale.grad, f("grad_log_scale"))
