"""The library's own networks, by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from cktf.errors import ModelError, nearest
from cktf.models.resnet import CifarResNet
from cktf.models.wrn import WideResNet

_Builder = Callable[[int], nn.Module]


def _resnet(depth: int, widths: tuple[int, ...]) -> _Builder:
    return partial(CifarResNet, depth, widths)


_ZOO: dict[str, _Builder] = {
    **{f"resnet{d}": _resnet(d, (16, 16, 32, 64)) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": _resnet(d, (32, 64, 128, 256)) for d in (8, 32)},
    **{f"wrn_{d}_{w}": partial(WideResNet, d, w) for d in (16, 40) for w in (1, 2)},
}


def names() -> list[str]:
    """Names that `create` knows, in the order in which they are listed to users.

    >>> names()[:2]
    ['resnet8', 'resnet14']
    """
    return list(_ZOO)


def check_name(name: str) -> None:
    """Raise ModelError, with the nearest name, unless `name` is a network of the library."""
    if name not in _ZOO:
        raise ModelError(f"There is no network {name!r}. {nearest(name, _ZOO)}")


def create(name: str, num_classes: int) -> nn.Module:
    """A network of the library with fresh weights.

    Args:
        name: one of `names()`.
        num_classes: outputs of the classifier, at least 2.

    Returns:
        A module from images [B, 3, H, W] to logits [B, num_classes]; its `feature_paths` say where
        its stem, stages and embedding are.

    Raises:
        ModelError: unknown name or fewer than 2 classes.

    >>> sum(p.numel() for p in create("resnet8", num_classes=10).parameters())
    78042
    """
    check_name(name)
    if num_classes < 2:
        raise ModelError(
            f"A classifier has at least 2 classes; {name} was asked for {num_classes}."
        )
    network = _ZOO[name](num_classes)
    # Weights on disk say which network they belong to.
    network.zoo_name = name  # type: ignore[assignment]
    return network
