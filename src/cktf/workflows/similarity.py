"""Compare networks by their outputs for the same images."""

from dataclasses import dataclass

import torch
from torch import Tensor


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centered kernel alignment: 1 for representations equal up to rotation and scale.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
    equation 7 in the form of Gram matrices.

    Args:
        first: [N, D], a row for each image.
        second: [N, E], rows of the same images.
    """
    centered = [rows.double() - rows.double().mean(dim=0) for rows in (first, second)]
    a, b = (rows @ rows.T for rows in centered)
    norm = a.norm() * b.norm()
    return float((a * b).sum() / norm) if norm > 0 else 0.0


def logit_correlations(logits: Tensor) -> Tensor:
    """Correlation of every pair of classes' logits over images: [N, C] -> [C, C]."""
    if logits.shape[1] < 2:
        return torch.ones(1, 1)
    return torch.nan_to_num(torch.corrcoef(logits.double().T))


@dataclass(frozen=True)
class Calibration:
    """Accuracy against confidence.

    Attributes:
        confidence, accuracy: means of each bin that has images.
        count: images in each of these bins.
        error: expected calibration error, in points.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]
    error: float


def measure_calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """Compare a network's confidence with its accuracy, in bins of equal width.

    Args:
        probabilities: [N, classes].
        labels: [N].
        bins: over confidences from 0 to 1.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    correct = (predicted == labels).double()
    bin_index = (confidence * bins).long().clamp(max=bins - 1)
    position = torch.unique(bin_index, return_inverse=True)[1]
    count = torch.bincount(position)
    mean, accuracy = (torch.bincount(position, weights=v) / count for v in (confidence, correct))
    error = float((count * (mean - accuracy).abs()).sum() / len(labels))
    return Calibration(mean.tolist(), accuracy.tolist(), count.tolist(), 100 * error)


def accuracy_by_class(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Accuracy of each class in per cent, NaN for a class without images: [classes]."""
    correct = torch.bincount(labels[predicted == labels], minlength=classes)
    return 100 * correct / torch.bincount(labels, minlength=classes)
