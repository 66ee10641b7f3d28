"""The statistics of tables, against SciPy and against a least-squares fit of cell means."""

import math

import numpy as np
import pytest
from scipy import stats

from cktf.bench.contrasts import contrast_means
from cktf.bench.results import Column
from cktf.bench.statistics import (
    Difference,
    contrast,
    holm,
    paired_difference,
    pool_variance,
    t_quantile,
    t_two_sided,
)

A, B = Column("cifar100", "wrn", "resnet8"), Column("cifar100", "vgg", "resnet8")


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 7, 10, 58, 60, 341])
def test_student_t(dof):
    for t in (0.0, 0.01, -0.7, 1.5, 4.3, 20.0):
        assert t_two_sided(t, dof) == pytest.approx(2 * stats.t.sf(abs(t), dof), abs=1e-12)
    for confidence in (0.5, 0.95, 0.999):
        expected = stats.t.ppf((1 + confidence) / 2, dof)
        assert t_quantile(dof, confidence) == pytest.approx(expected, rel=1e-9)


def test_holm_follows_its_definition():
    p_values = [0.04, 0.001, 0.2, 0.012, 0.0125, 0.9, 0.012]
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.1, 0.5):
        # Reject from the smallest p-value on, until one exceeds alpha over the number that is left.
        rejected = set()
        for rank, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] > alpha / (len(p_values) - rank):
                break
            rejected.add(int(index))
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert holm([]) == []


def test_contrasts_are_those_of_a_fit_of_cell_means():
    """Seeds and pairs are uneven, and the student alone is one sample of both pairs."""
    alone = {0: 80.5, 1: 80.4, 2: 79.7}
    values = {
        (A, "alone"): alone,
        (A, "KD"): {0: 83.7, 1: 83.4, 2: 83.9},
        (A, "CKTF"): {0: 84.4, 1: 84.2},
        (B, "alone"): dict(reversed(alone.items())),
        (B, "KD"): {0: 83.3, 1: 83.4},
        (B, "CKTF"): {0: 83.6},
        (B, "AT"): {0: 81.0, 1: 82.0},
    }
    found = contrast_means(values, [A, B], dict.fromkeys(("alone", "CKTF", "AT"), "KD"), "CKTF")
    keys = [key for key in values if key != (B, "alone")]
    rows = [(keys.index(key), top1) for key in keys for top1 in values[key].values()]
    design = np.eye(len(keys))[[index for index, _ in rows]]
    accuracies = np.array([top1 for _, top1 in rows])
    means, (residual,), *_ = np.linalg.lstsq(design, accuracies, rcond=None)
    dof = len(rows) - len(keys)
    variance = residual / dof
    assert found.residual == pytest.approx((math.sqrt(variance), dof))

    def expected(**weights):
        w = np.array([weights.get(f"{m}_{'A' if c == A else 'B'}", 0.0) for c, m in keys])
        error = math.sqrt(variance * w @ np.linalg.inv(design.T @ design) @ w)
        half = stats.t.ppf(0.975, dof) * error
        p = 2 * stats.t.sf(abs(w @ means) / error, dof)
        return w @ means, w @ means - half, w @ means + half, p

    cases = {
        (A, "CKTF"): expected(CKTF_A=1, KD_A=-1),
        (B, "CKTF"): expected(CKTF_B=1, KD_B=-1),
        (None, "CKTF"): expected(CKTF_A=0.5, KD_A=-0.5, CKTF_B=0.5, KD_B=-0.5),
        (A, "alone"): expected(alone_A=1, KD_A=-1),
        (B, "alone"): expected(alone_A=1, KD_B=-1),
        (None, "alone"): expected(alone_A=1, KD_A=-0.5, KD_B=-0.5),
        (B, "AT"): expected(AT_B=1, KD_B=-1),
    }
    differences = {**found.differences, **{(None, m): d for m, d in found.overall.items()}}
    assert differences.keys() == cases.keys()
    for key, (points, low, high, p) in cases.items():
        d = differences[key]
        assert (d.points, d.low, d.high, d.p) == pytest.approx((points, low, high, p), abs=1e-9)
    # The primary contrast is over both pairs, and Holm's method takes in all others.
    assert found.primary == ("CKTF", differences[None, "CKTF"])
    assert differences[None, "CKTF"].adjusted_p == differences[None, "CKTF"].p
    others = [key for key in differences if key != (None, "CKTF")]
    assert found.corrected == len(others) == 6
    adjusted = holm([differences[key].p for key in others])
    assert [differences[key].adjusted_p for key in others] == pytest.approx(adjusted)
    assert [d.pairs for d in found.overall.values()] == [2, 2]


def test_one_seed_has_no_variance():
    assert pool_variance([("KD", (70.0,)), ("AT", (71.0,))]) is None
    assert contrast({("AT", (71.0,)): 1.0, ("KD", (70.0,)): -1.0}, None) == Difference(1.0)
    assert Difference(1.0).verdict is None


def test_verdicts():
    wide = {"low": 0.1, "high": 0.9, "p": 0.01}
    assert Difference(0.5, **wide, adjusted_p=0.06).verdict == "open"
    assert Difference(0.5, **wide, adjusted_p=0.04).verdict == "ahead"
    assert Difference(-0.5, **wide, adjusted_p=0.04).verdict == "behind"
    # Seeds without any spread leave no doubt.
    residual = pool_variance([("KD", (70.0, 70.0)), ("AT", (71.0, 71.0))])
    equal = contrast({("AT", (71.0, 71.0)): 1.0, ("KD", (70.0, 70.0)): -1.0}, residual)
    assert (equal.p, equal.verdict) == (0.0, "ahead")


def test_paired_difference():
    first, second = {0: 2.0, 1: 4.5, 2: 3.0, 3: 8.0}, {0: 1.0, 1: 2.0, 2: 3.0, 4: 9.0}
    interval = stats.ttest_rel([2.0, 4.5, 3.0], [1.0, 2.0, 3.0]).confidence_interval(0.95)
    found = paired_difference(first, second)
    expected = (7 / 6, interval.low, interval.high, 3)
    assert (found.points, found.low, found.high, found.pairs) == pytest.approx(expected)
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    assert paired_difference({0: 1.0}, {0: 3.0, 1: 2.0}) == Difference(-2.0)
