"""Networks that normalize and resize their images."""

import pytest
import torch
from torch import nn

from cktf.errors import ModelError
from cktf.models import Normalized, create


def test_normalized_is_the_formula():
    network = create("resnet8", 10).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    by_hand = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Normalized(network, mean, std)(images), network(by_hand))
    with pytest.raises(ModelError, match="positive std"):
        Normalized(network, mean, (0.5, 0.0, 0.7))


def test_images_are_resized():
    shapes = []
    network = Normalized(nn.Identity(), [0.0] * 3, [1.0] * 3, 16)
    network.network.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    network(torch.rand(2, 3, 32, 32))
    assert shapes == [(2, 3, 16, 16)]
