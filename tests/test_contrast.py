"""Negatives and memory banks."""

import math

import pytest
import torch
from torch.nn import functional as F

from cktf.contrast import NegativeSampler, random_bank, update_bank
from cktf.contrast.bank import set_random_rows
from cktf.errors import MethodError, ShapeError

N = 60


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unequal_classes() -> torch.Tensor:
    """Sixty samples of classes 0, 3 and 7, of unequal sizes, shuffled."""
    labels = torch.tensor([0] * 5 + [3] * 20 + [7] * 35)
    return labels[torch.randperm(N)]


def test_labeled_negatives_are_all_of_other_classes_and_equally_likely():
    labels = unequal_classes()
    sampler, index = NegativeSampler(N, labels), torch.arange(N)
    draws = 4000
    drawn = sampler.draw(index, draws)
    assert drawn.shape == (N, draws)
    for i in range(N):
        counts = torch.bincount(drawn[i], minlength=N).float()
        allowed = labels != labels[i]
        assert counts[~allowed].sum() == 0
        expected = draws / allowed.sum()
        chi2 = float(((counts[allowed] - expected) ** 2 / expected).sum())
        # Mean of chi-squared is its degrees of freedom; six standard deviations above it.
        freedom = int(allowed.sum()) - 1
        assert chi2 < freedom + 6 * (2 * freedom) ** 0.5


def test_unlabeled_negatives_are_all_but_the_anchor_and_equally_likely():
    drawn = NegativeSampler(N).draw(torch.arange(N), 4000)
    for i in range(N):
        counts = torch.bincount(drawn[i], minlength=N).float()
        assert counts[i] == 0
        assert (counts > 0).sum() == N - 1
        expected = 4000 / (N - 1)
        chi2 = float(((counts[counts > 0] - expected) ** 2 / expected).sum())
        assert chi2 < N + 6 * (2 * N) ** 0.5


def test_draws_follow_the_seed():
    sampler = NegativeSampler(N)
    torch.manual_seed(1)
    first = sampler.draw(torch.arange(4), 10)
    torch.manual_seed(1)
    assert torch.equal(first, sampler.draw(torch.arange(4), 10))
    assert not torch.equal(first, sampler.draw(torch.arange(4), 10))


def test_nothing_to_draw_from():
    with pytest.raises(MethodError, match="one class"):
        NegativeSampler(3, torch.zeros(3).long())
    with pytest.raises(MethodError, match="2 or more samples"):
        NegativeSampler(1)
    with pytest.raises(ShapeError, match="one per sample"):
        NegativeSampler(3, torch.arange(4))


def test_bank_rows_start_near_unit_length():
    bank = random_bank(1000, 128)
    assert bank.abs().max() <= (128 / 3) ** -0.5
    assert float(bank.norm(dim=1).mean()) == pytest.approx(1.0, abs=0.02)
    # In all directions: 5 standard errors of the mean of 128,000 numbers.
    assert float(bank.mean()) == pytest.approx(0.0, abs=5 * (128 * 128_000) ** -0.5)


def test_all_rows_of_a_bank_are_drawn(monkeypatch):
    """In pieces, of which the last is shorter."""
    monkeypatch.setattr("cktf.contrast.bank._CHUNK", 7)
    rows = torch.full((9, 4), math.nan)
    set_random_rows(rows)
    torch.manual_seed(0)
    bound = (4 / 3) ** -0.5
    drawn = [torch.empty(n).uniform_(-bound, bound) for n in [7] * 5 + [1]]
    assert torch.equal(rows, torch.cat(drawn).view(9, 4))


def test_update_is_the_formula_and_touches_no_other_row():
    bank = F.normalize(torch.randn(10, 4), dim=1)
    before, rows = bank.clone(), F.normalize(torch.randn(3, 4), dim=1)
    update_bank(bank, torch.tensor([7, 0, 4]), rows, momentum=0.3)
    for position, i in enumerate([7, 0, 4]):
        mixed = 0.3 * before[i] + 0.7 * rows[position]
        torch.testing.assert_close(bank[i], mixed / mixed.norm())
    others = [1, 2, 3, 5, 6, 8, 9]
    assert torch.equal(bank[others], before[others])


def test_rows_in_bfloat16_are_mixed_in_float32():
    bank = F.normalize(torch.randn(50, 16), dim=1).bfloat16()
    before, rows = bank.clone(), F.normalize(torch.randn(50, 16), dim=1)
    update_bank(bank, torch.arange(50), rows, momentum=0.3)
    assert torch.equal(bank, F.normalize(before.float() * 0.3 + rows * 0.7, dim=1).bfloat16())


def test_a_sample_that_comes_twice_leaves_one_of_its_rows():
    bank = F.normalize(torch.randn(5, 4), dim=1)
    before, rows = bank.clone(), F.normalize(torch.randn(2, 4), dim=1)
    update_bank(bank, torch.tensor([2, 2]), rows, momentum=0.5)
    candidates = F.normalize(0.5 * before[2] + 0.5 * rows, dim=1)
    assert any(torch.allclose(bank[2], candidate) for candidate in candidates)
