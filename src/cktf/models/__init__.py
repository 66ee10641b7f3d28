"""Networks by name, checkpoints, and what a network says about itself."""

from cktf.models.checkpoints import load_network, load_weights, save_network
from cktf.models.normalized import Normalized
from cktf.models.paths import FeaturePaths
from cktf.models.translate import to_published_keys
from cktf.models.zoo import check_name, create, names

__all__ = [
    "FeaturePaths",
    "Normalized",
    "check_name",
    "create",
    "load_network",
    "load_weights",
    "names",
    "save_network",
    "to_published_keys",
]
