"""Comparisons of networks: CKA, calibration, correlations, accuracy by class."""

import numpy as np
import pytest
import torch

from cktf.workflows.similarity import (
    accuracy_by_class,
    linear_cka,
    logit_correlations,
    measure_calibration,
)


def test_linear_cka_knows_rotation_and_scale():
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0, abs=1e-6)
    y = torch.randn(40, 9)
    a, b = (v - v.mean(0) for v in (x.double(), y.double()))
    # The definition by features, where the code goes by Gram matrices.
    expected = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-9)
    assert linear_cka(x, torch.ones(40, 3)) == 0.0


def test_calibration_by_a_loop():
    torch.manual_seed(1)
    probabilities, labels = torch.randn(200, 5).softmax(1), torch.randint(5, (200,))
    found = measure_calibration(probabilities, labels, bins=10)
    confidence, predicted = probabilities.max(1)
    error = 0.0
    for number in range(10):
        inside = (number / 10 <= confidence) & (confidence < (number + 1) / 10)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).double().mean()
            gap = float((accuracy - confidence[inside].double().mean()).abs())
            error += gap * int(inside.sum()) / 200
    assert found.error == pytest.approx(100 * error, rel=1e-5)
    assert sum(found.count) == 200


def test_correlations_of_logits():
    torch.manual_seed(0)
    logits = torch.randn(50, 4)
    assert np.allclose(logit_correlations(logits), np.corrcoef(logits.double().numpy().T))


def test_accuracy_by_class():
    accuracy = accuracy_by_class(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1]), 3)
    assert accuracy[:2].tolist() == [50.0, 50.0]
    assert bool(accuracy[2].isnan())
