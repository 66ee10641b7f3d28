"""Names of weights: from those of the CKTF paper's networks to ours.

Both published families have the same networks. Ours carry the names of the one of Tian et al.,
"Contrastive Representation Distillation", ICLR 2020, whose trained teachers are in circulation. The
one of Zhao et al. (CKTF), ICASSP 2023, names the layers of its VGGs by convolution, `block2.1.bn`,
where ours count modules, `block2.4`; all its other networks have the same names.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from cktf.models.zoo import check_network_name

_T = TypeVar("_T")

# Modules of one layer in our blocks: a convolution, its BN, its activation.
_PLACES = {"conv2d": 0, "bn": 1}
_MODULES_PER_LAYER = 3
_VGG_KEY = re.compile(r"(block\d)\.(\d+)\.(conv2d|bn)\.(\w+)")


def to_published_keys(state: Mapping[str, _T], name: str) -> dict[str, _T]:
    """A state dict of either published family under the keys of this library's network.

    Args:
        state: values by key; keys that are ours already, or that no network has, stay.
        name: what `create` calls the network.

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
    return {_vgg_key(key): value for key, value in state.items()}


def _vgg_key(key: str) -> str:
    match = _VGG_KEY.fullmatch(key)
    if match is None:
        return key
    block, layer, kind, rest = match.groups()
    return f"{block}.{_MODULES_PER_LAYER * int(layer) + _PLACES[kind]}.{rest}"
