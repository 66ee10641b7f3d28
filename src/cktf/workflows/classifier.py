"""A linear classifier on a network's features, and its place in the network."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cktf.errors import ModelError
from cktf.taps import FeaturePaths, Tap, eval_mode, new_classifier, to_device_of, type_name
from cktf.workflows.inspection import find_feature_paths


@dataclass(frozen=True)
class EmbeddedImages:
    """A data set as a network sees it.

    Attributes:
        features: [N, D] float32, what the classifier reads.
        labels: [N] int64.
    """

    features: Tensor
    labels: Tensor

    def take(self, positions: Tensor) -> "EmbeddedImages":
        """Some of its images."""
        return EmbeddedImages(self.features[positions], self.labels[positions])


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier on features.

    Attributes:
        weight: [classes, D] float32.
        bias: [classes] float32.
        strength: inverse of the regularization's, as chosen.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def accuracy(self, data: EmbeddedImages) -> float:
        """Share of images classified rightly, in per cent."""
        found = (data.features @ self.weight.T + self.bias).argmax(1)
        return round(100 * float((found == data.labels).float().mean()), 4)


def compute_embedding(network: nn.Module, images: Tensor, embedding: str | None = None) -> Tensor:
    """What a network's classifier reads of images [B, C, H, W], as [B, D].

    Args:
        network: from images to logits.
        images: that it takes.
        embedding: the path of it, where the user gives one.

    Raises:
        TapError: it cannot be found.
    """
    images = to_device_of(network, images)
    return _embedded(network, images, find_feature_paths(network, images, embedding=embedding))


def _embedded(network: nn.Module, images: Tensor, paths: FeaturePaths) -> Tensor:
    with eval_mode(network), torch.no_grad():
        found = Tap(network, paths, ["embedding"])(images).embedding
    assert found is not None
    return found.cpu()


def install_classifier(
    network: nn.Module,
    classifier: LinearClassifier,
    images: Tensor,
    embedding: str | None = None,
) -> nn.Module:
    """The network with a linear classifier in the place of its own; changed in place.

    Args:
        network: whose features the classifier reads.
        classifier: as fitted on them.
        images: [B, C, H, W], an example by which its place is found.
        embedding: the path of what it reads, where the user gives one.

    Raises:
        ModelError: something is between what it reads and the classifier, or follows that.
    """
    images = to_device_of(network, images)
    paths = find_feature_paths(network, images, embedding=embedding)
    new = new_classifier(network, len(classifier.bias), images, bias=True)
    fits = new.weight.numel() == classifier.weight.numel()
    if fits:
        with torch.no_grad():
            new.weight.copy_(classifier.weight.view_as(new.weight))
            assert new.bias is not None
            new.bias.copy_(classifier.bias)
        with eval_mode(network), torch.no_grad():
            logits = network(images).cpu()
        expected = _embedded(network, images, paths) @ classifier.weight.T + classifier.bias
        fits = torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
    if not fits:
        raise ModelError(
            f"{type_name(network)} does more to its logits than a linear classifier of "
            f"{paths.embedding!r}, so that a probe's cannot take its place. Train it: cktf train "
            "--model RUN --set trains=classifier."
        )
    return network


def check_classifier(
    network: nn.Module, classes: int, images: Tensor, embedding: str | None = None
) -> None:
    """Try on a copy of the network whether a linear classifier can take the place of its own.

    Raises:
        ModelError, TapError: it cannot, as `install_classifier` would say it.
    """
    tried = copy.deepcopy(network)
    length = compute_embedding(tried, images, embedding).shape[1]
    steps = torch.linspace(-1, 1, classes * length).view(classes, length)
    install_classifier(tried, LinearClassifier(steps, steps[:, 0], 0.0), images, embedding)
