"""The exact expectation against its definition, and against many sampled losses."""

import math

import pytest
import torch
from torch.nn import functional as F

from cktf.contrast import NegativeSampler
from cktf.errors import ShapeError
from cktf.functional import contrast, nce_loss, nce_loss_all
from cktf.functional.critics import EPSILON

B, N, D, K = 6, 90, 16, 40
TAU, Z = 0.1, float(N * math.exp(0.5))


@pytest.fixture(params=["labels", "no labels"])
def case(request):
    """Anchors, a bank, their own rows, and classes of unequal size."""
    torch.manual_seed(0)
    anchor = F.normalize(torch.randn(B, D), dim=1)
    bank = F.normalize(torch.randn(N, D), dim=1)
    index = torch.randperm(N)[:B]
    classes = torch.tensor([0] * 50 + [1] * 30 + [2] * 10)[torch.randperm(N)]
    labeled = request.param == "labels"
    return anchor, bank, index, classes if labeled else None


def exact(anchor, bank, index, classes, **change):
    labels = None if classes is None else classes[index]
    arguments = {"temperature": TAU, "normalizer": Z, "negatives": K} | change
    return nce_loss_all(anchor, bank, index, labels=labels, bank_labels=classes, **arguments)


def by_definition(anchor, bank, index, classes):
    """Row by row, in double precision."""
    total, c = 0.0, K / N
    for i, own in enumerate(index.tolist()):
        p = torch.exp(bank.double() @ anchor[i].double() / TAU) / Z
        others = [
            j for j in range(N)
            if (j != own if classes is None else classes[j] != classes[own])
        ]  # fmt: skip
        negative = torch.log(c / (p[others] + c + EPSILON)).mean()
        total = total - torch.log(p[own] / (p[own] + c + EPSILON)) - K * negative
    return total / B


@pytest.mark.parametrize("chunk", [1, 7 * B, 1 << 20])
def test_value_and_gradient_by_definition_whatever_the_chunk(case, chunk, monkeypatch):
    monkeypatch.setattr(contrast, "BLOCK", chunk)
    anchor, *rest = case
    fused, naive = (anchor.clone().requires_grad_() for _ in range(2))
    loss, expected = exact(fused, *rest), by_definition(naive, *rest)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(fused.grad, naive.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_mean_of_sampled_losses_converges_to_it(case):
    anchor, bank, index, classes = case
    sampler = NegativeSampler(N, classes)
    anchor = anchor.requires_grad_()
    losses, gradients = [], []
    for _ in range(2000):
        anchor.grad = None
        contrast = torch.cat([index.unsqueeze(1), sampler.draw(index, K)], dim=1)
        loss = nce_loss(anchor, bank, contrast, temperature=TAU, normalizer=Z)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(anchor.grad)
    anchor.grad = None
    expected = exact(anchor, bank, index, classes)
    expected.backward()
    for drawn, value in ((losses, expected.detach()), (gradients, anchor.grad)):
        sample = torch.stack(drawn)
        error = sample.std(0) / len(drawn) ** 0.5
        # The largest of up to a hundred standard normal numbers stays below 4.5.
        assert ((sample.mean(0) - value).abs() < 4.5 * error).all()
    # And the bound is tight enough to tell: one standard deviation is a visible part of the loss.
    assert error.max() < 0.05 * anchor.grad.abs().max()


def test_float32_under_autocast_and_bfloat16_banks(case):
    anchor, bank, index, classes = case
    plain = exact(anchor, bank, index, classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert exact(anchor, bank, index, classes).item() == plain.item()
    half = exact(anchor, bank.bfloat16(), index, classes)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(plain.item(), rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, i: ((a, b[:, :4], i), {}), "rows of one length"),
        (lambda a, b, i: ((a, b, i + N), {}), "one row for each of 90"),
        (lambda a, b, i: ((a, b, i), {"negatives": 0}), "at least one negative"),
        (lambda a, b, i: ((a, b, i), {"labels": i}), "together, or neither"),
        (lambda a, b, i: ((a, b, i), {"labels": i, "bank_labels": i}), r"bank_labels \[90\]"),
        (
            lambda a, b, i: ((a, b, i), {"labels": i * 0, "bank_labels": torch.zeros(N).long()}),
            "no anchor has a negative",
        ),
    ],
)
def test_mistakes(change, message):
    arguments, keywords = change(torch.rand(B, D), torch.rand(N, D), torch.arange(B))
    keywords = {"temperature": TAU, "normalizer": Z, "negatives": K} | keywords
    with pytest.raises(ShapeError, match=message):
        nce_loss_all(*arguments, **keywords)
