"""The library's own networks, by name."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cktf.errors import ModelError, nearest
from cktf.first_use import call_later

if TYPE_CHECKING:
    from torch import nn

_Builder = Callable[[int], "nn.Module"]
_CifarResNet = call_later("cktf.models.cifar_resnet:CifarResNet")
_WideResNet = call_later("cktf.models.wide_resnet:WideResNet")
_VGGNet = call_later("cktf.models.vgg:VGG")
_MobileNetV2 = call_later("cktf.models.mobilenet:MobileNetV2")
_ShuffleNet = call_later("cktf.models.shufflenet:ShuffleNet")
_BasicResNet = call_later("cktf.models.four_stage_resnet:build_basic_resnet")
_BottleneckResNet = call_later("cktf.models.four_stage_resnet:build_bottleneck_resnet")

# Convolutions of each of the five blocks.
_VGG = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
# Blocks of each of the four stages.
_BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _resnet(depth: int, widths: tuple[int, ...]) -> _Builder:
    # Two of the published networks have blocks of one convolution.
    return partial(_CifarResNet, depth, widths, convolutions=1 if depth in (5, 17) else 2)


_ZOO: dict[str, _Builder] = {
    **{f"resnet{d}": _resnet(d, (16, 16, 32, 64)) for d in (5, 8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": _resnet(d, (32, 64, 128, 256)) for d in (5, 8, 17, 32)},
    **{f"wrn_{d}_{w}": partial(_WideResNet, d, w) for d in (16, 40) for w in (1, 2)},
    **{f"vgg{d}": partial(_VGGNet, layers) for d, layers in _VGG.items()},
    "MobileNetV2": _MobileNetV2,
    "ShuffleV1": partial(_ShuffleNet, 1),
    "ShuffleV2": partial(_ShuffleNet, 2),
    **{f"ResNet{d}": partial(_BasicResNet, n) for d, n in _BASIC.items()},
    **{f"ResNet{d}": partial(_BottleneckResNet, n) for d, n in _BOTTLENECK.items()},
}


def list_networks() -> list[str]:
    """List the names of networks, in the order in which users see them.

    >>> list_networks()[:2]
    ['resnet5', 'resnet8']
    """
    return list(_ZOO)


def check_network_name(name: str) -> None:
    """Raise ModelError, with the nearest name, if the library has no network `name`."""
    if name not in _ZOO:
        # resnet18 means ResNet18, though resnet14 is as near: a difference in case comes first.
        same_letters = [known for known in _ZOO if known.lower() == name.lower()]
        hint = f"Did you mean {same_letters[0]!r}?" if same_letters else nearest(name, _ZOO)
        raise ModelError(f"There is no network {name!r}. {hint}")


def create(name: str, num_classes: int) -> "nn.Module":
    """Build a network of the library with fresh weights.

    Args:
        name: one of `list_networks()`.
        num_classes: outputs of the classifier, at least 2.

    Returns:
        A module from images [B, 3, H, W] to logits [B, num_classes]; its `feature_paths` name
        the modules of its stem, stages and embedding.

    Raises:
        ModelError: unknown name or fewer than 2 classes.

    >>> sum(p.numel() for p in create("resnet8", num_classes=10).parameters())
    78042
    """
    check_network_name(name)
    if num_classes < 2:
        raise ModelError(
            f"A classifier has at least 2 classes; {name} was asked for {num_classes}."
        )
    network = _ZOO[name](num_classes)
    # load_state_dict_strictly translates published keys by this name.
    network.zoo_name = name  # type: ignore[assignment]
    return network
