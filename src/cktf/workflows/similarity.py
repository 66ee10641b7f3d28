"""How networks are compared by what they give for the same images."""

from dataclasses import dataclass

import torch
from torch import Tensor


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centered kernel alignment, 1 for representations alike up to rotation and scale.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
    equation 7 in the form of Gram matrices.

    Args:
        first: [N, D], a row for each image.
        second: [N, E], rows of the same images.
    """

    def gram(rows: Tensor) -> Tensor:
        centered = rows.double() - rows.double().mean(dim=0)
        return centered @ centered.T

    a, b = gram(first), gram(second)
    size = a.norm() * b.norm()
    return float((a * b).sum() / size) if size > 0 else 0.0


def logit_correlations(logits: Tensor) -> Tensor:
    """Correlation of every pair of classes' logits over images: [N, C] -> [C, C]."""
    if logits.shape[1] < 2:
        return torch.ones(1, 1)
    return torch.nan_to_num(torch.corrcoef(logits.double().T))


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy.

    Attributes:
        confidence, accuracy: mean of each bin that has images.
        count: images in it.
        error: expected calibration error, in points.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]
    error: float


def measure_calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """How far a network's confidence is from its accuracy, in bins of equal width.

    Args:
        probabilities: [N, classes].
        labels: [N].
        bins: over confidences from 0 to 1.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    there = count > 0
    sums = [torch.bincount(place, weights=v, minlength=bins)[there] for v in (confidence, right)]
    mean, accuracy = (total / count[there] for total in sums)
    error = float((count[there] * (mean - accuracy).abs()).sum() / len(labels))
    return Calibration(mean.tolist(), accuracy.tolist(), count[there].tolist(), 100 * error)


def accuracy_by_class(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Accuracy of every class in per cent, NaN for one without images: [classes]."""
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    return 100 * right / torch.bincount(labels, minlength=classes)
