"""Initialization that the networks of this library share."""

from torch import nn


def initialize_convolutions(network: nn.Module) -> None:
    """Draw the weights of every convolution by He's method (fan out) and zero its bias."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_classifier(classifier: nn.Linear) -> None:
    """Draw the weights of a classifier from a normal distribution of std 0.01, zero its bias."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
