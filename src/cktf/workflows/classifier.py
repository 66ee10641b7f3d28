"""A linear classifier on a network's features, and its installation in the network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cktf.errors import ModelError
from cktf.models import copy_network
from cktf.taps import (
    Tap,
    eval_mode,
    fit_memory_format,
    replace_classifier,
    to_device_of,
    type_name,
)
from cktf.workflows.inspection import find_feature_paths


@dataclass(frozen=True)
class EmbeddedImages:
    """A data set as a network's embeddings.

    Attributes:
        features: [N, D] float32, what the classifier reads.
        labels: [N] int64.
    """

    features: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> "EmbeddedImages":
        """A subset of the images."""
        return EmbeddedImages(self.features[indices], self.labels[indices])


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier on features.

    Attributes:
        weight: [classes, D] float32.
        bias: [classes] float32.
        strength: inverse strength of the regularization (scikit-learn's C).
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def accuracy(self, data: EmbeddedImages) -> float:
        """Share of images that are classified correctly, in per cent."""
        predicted = (data.features @ self.weight.T + self.bias).argmax(1)
        return round(100 * float((predicted == data.labels).float().mean()), 4)


def compute_embedding(network: nn.Module, images: Tensor, embedding: str | None = None) -> Tensor:
    """The input of a network's classifier for images [B, C, H, W], as [B, D].

    Args:
        network: from images to logits.
        images: that it takes.
        embedding: its path, if the user names one.

    Raises:
        TapError: it cannot be found.
    """
    images = to_device_of(network, images)
    fit_memory_format(network, images)
    paths = find_feature_paths(network, images, embedding=embedding)
    with eval_mode(network), torch.no_grad():
        features = Tap(network, paths, ["embedding"])(images).embedding
    assert features is not None
    return features.cpu()


def install_classifier(
    network: nn.Module,
    classifier: LinearClassifier,
    images: Tensor,
    embedding: str | None = None,
) -> nn.Module:
    """Replace a network's classifier by a linear one that was fitted on its features, in place.

    Args:
        network: its features are the classifier's input.
        classifier: fitted on them.
        images: [B, C, H, W], an example by which the network's own classifier is found.
        embedding: path of the features, if the user names one.

    Raises:
        ModelError: the network's logits are no linear function of these features.
    """
    images = to_device_of(network, images)
    fit_memory_format(network, images)
    paths = find_feature_paths(network, images, embedding=embedding)
    expected = compute_embedding(network, images, embedding) @ classifier.weight.T
    expected += classifier.bias
    new = replace_classifier(network, len(classifier.bias), images, bias=True)
    fits = new.weight.numel() == classifier.weight.numel()
    if fits:
        with torch.no_grad():
            new.weight.copy_(classifier.weight.view_as(new.weight))
            assert new.bias is not None
            new.bias.copy_(classifier.bias)
        with eval_mode(network), torch.no_grad():
            logits = network(images).cpu()
        fits = torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
    if not fits:
        raise ModelError(
            f"{type_name(network)} computes its logits with more than a linear layer on "
            f"{paths.embedding!r}, so a probe's classifier cannot replace its own. Train it: cktf "
            "train --model RUN --set trains=classifier."
        )
    return network


def check_classifier(
    network: nn.Module, classes: int, images: Tensor, embedding: str | None = None
) -> None:
    """Check on a copy of the network that `install_classifier` works.

    Raises:
        ModelError, TapError: it does not.
    """
    network = copy_network(network)
    length = compute_embedding(network, images, embedding).shape[1]
    weight = torch.linspace(-1, 1, classes * length).view(classes, length)
    install_classifier(network, LinearClassifier(weight, weight[:, 0], 0.0), images, embedding)
