"""A new classifier in the place of a network's own."""

import torch
from torch import Tensor, nn

from cktf.errors import ModelError
from cktf.models.feature_paths import FeaturePaths
from cktf.models.normalized import Normalized
from cktf.taps.folding import type_name
from cktf.taps.infer import eval_mode, find_classifier, to_device_of
from cktf.taps.tap import Tap


def count_logits(network: nn.Module, images: Tensor) -> int:
    """How many a network gives for images [B, C, H, W]; its mode is left as it is."""
    images = to_device_of(network, images)
    with torch.no_grad(), eval_mode(network):
        return Tap(network, FeaturePaths(), ())(images).logits.shape[1]


def resize_classifier(
    network: nn.Module, classes: int, images: Tensor, *, anew: bool = False
) -> bool:
    """Give a network a fresh classifier, if it has another number of logits.

    Args:
        network: changed in place.
        classes: logits that it is to give.
        images: [B, C, H, W], an example by which the classifier is found.
        anew: also if it gives as many.

    Returns:
        Whether it has a fresh one.

    Raises:
        ModelError: no single layer gives its logits, and it cannot replace its classifier itself.
        TapError: it gives no logits.
    """
    images = to_device_of(network, images)
    if count_logits(network, images) == classes and not anew:
        return False
    inner = network.network if isinstance(network, Normalized) else network
    reset = getattr(inner, "reset_classifier", None)
    if callable(reset):
        # Networks of timm know their own classifier, and some have two.
        reset(classes)
    else:
        new_classifier(network, classes, images)
    try:
        given = count_logits(network, images)
    except RuntimeError:
        given = 0
    if given != classes:
        raise ModelError(
            f"{type_name(network)} makes its logits of more than one layer, so that it cannot be "
            f"given another classifier. Build it with {classes} classes."
        )
    return True


def new_classifier(
    network: nn.Module, classes: int, images: Tensor, *, bias: bool | None = None
) -> nn.Linear | nn.Conv2d:
    """Put a fresh layer of so many logits in the place of the one that gives a network's own.

    Args:
        network: changed in place.
        classes: logits of the new one.
        images: [B, C, H, W], an example by which its place is found.
        bias: whether the new one has one; by default as the old.

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
