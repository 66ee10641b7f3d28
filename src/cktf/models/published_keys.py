"""Translate the state-dict keys of the CKTF paper's networks into this library's.

Two families of these networks are published. This library uses the keys of Tian et al.,
"Contrastive Representation Distillation", ICLR 2020, whose trained teachers are in circulation.
Zhao et al. (CKTF), ICASSP 2023, number the convolutions of a VGG, `block2.1.bn`, where the others
number modules, `block2.4`; all other keys are the same.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from cktf.models.zoo import check_network_name

_T = TypeVar("_T")

# A layer has three modules: convolution, BN, activation.
_MODULE_OFFSETS = {"conv2d": 0, "bn": 1}
_MODULES_PER_LAYER = 3
_VGG_KEY = re.compile(r"^(block\d)\.(\d+)\.(conv2d|bn)\.(?=\w+$)")


def to_published_keys(state: Mapping[str, _T], name: str) -> dict[str, _T]:
    """Translate a state dict of either published family to the keys of this library's network.

    Args:
        state: values by key; keys of this library and unknown keys are unchanged.
        name: of the network, as for `create`.

    Returns:
        The same values in the same order.

    Raises:
        ModelError: unknown name.

    >>> to_published_keys({"block2.1.bn.weight": 1, "classifier.bias": 2}, "vgg13")
    {'block2.4.weight': 1, 'classifier.bias': 2}
    """
    check_network_name(name)
    if not name.startswith("vgg"):
        return dict(state)

    def number(match: re.Match[str]) -> str:
        block, layer, kind = match.groups()
        return f"{block}.{_MODULES_PER_LAYER * int(layer) + _MODULE_OFFSETS[kind]}."

    return {_VGG_KEY.sub(number, key): value for key, value in state.items()}
