"""Replace a network's classifier."""

import torch
from torch import Tensor, nn

from cktf.errors import ModelError
from cktf.models.feature_paths import FeaturePaths
from cktf.models.normalized import Normalized
from cktf.taps.folding import type_name
from cktf.taps.infer import find_classifier
from cktf.taps.modes import eval_mode, fit_memory_format, to_device_of
from cktf.taps.tap import Tap


def count_logits(network: nn.Module, images: Tensor) -> int:
    """The number of logits for images [B, C, H, W]; the network's mode is restored."""
    images = to_device_of(network, images)
    fit_memory_format(network, images)
    with torch.no_grad(), eval_mode(network):
        return Tap(network, FeaturePaths(), ())(images).logits.shape[1]


def resize_classifier(
    network: nn.Module, classes: int, images: Tensor, *, force: bool = False
) -> bool:
    """Give a network a fresh classifier if it has another number of logits.

    Args:
        network: changed in place.
        classes: the number of logits.
        images: [B, C, H, W], an example by which the classifier is found.
        force: replace a classifier of that size too.

    Returns:
        Whether the classifier is fresh.

    Raises:
        ModelError: no single layer gives its logits, and it cannot replace its classifier itself.
        TapError: it gives no logits.
    """
    images = to_device_of(network, images)
    if count_logits(network, images) == classes and not force:
        return False
    inner = network.network if isinstance(network, Normalized) else network
    reset = getattr(inner, "reset_classifier", None)
    if callable(reset):
        # Networks of timm know their own classifier, and some have two.
        reset(classes)
    else:
        replace_classifier(network, classes, images)
    try:
        count = count_logits(network, images)
    except RuntimeError:
        count = 0
    if count != classes:
        raise ModelError(
            f"{type_name(network)} computes its logits with more than one layer, so its classifier "
            f"cannot be replaced. Build it with {classes} classes."
        )
    return True


def replace_classifier(
    network: nn.Module, classes: int, images: Tensor, *, bias: bool | None = None
) -> nn.Linear | nn.Conv2d:
    """Replace the layer that gives a network's logits by a fresh one.

    Args:
        network: changed in place.
        classes: logits of the new layer.
        images: [B, C, H, W], an example by which the layer is found.
        bias: whether the new layer has one; by default as the old.

    Raises:
        ModelError: no layer gives its logits.
    """
    path = find_classifier(network, images)
    parent, _, name = path.rpartition(".")
    old = network.get_submodule(path)
    assert isinstance(old, nn.Linear | nn.Conv2d)
    bias = old.bias is not None if bias is None else bias
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, classes, 1, bias=bias)
    else:
        new = nn.Linear(old.in_features, classes, bias=bias)
    setattr(network.get_submodule(parent), name, new.to(old.weight.device))
    return new
