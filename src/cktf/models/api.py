"""The public names of `cktf.models`, which imports this module at their first use."""

from cktf.models.external_weights import (
    describe_origin,
    identify_network,
    read_state_dict,
    short_sha256,
)
from cktf.models.extra_state import pack_extra_state
from cktf.models.feature_paths import FeaturePaths
from cktf.models.network_building import build_network
from cktf.models.network_spec import (
    NetworkSpec,
    is_library_network,
    parse_network_spec,
    resolve_network_spec,
    runs_user_code,
)
from cktf.models.normalized import Normalized
from cktf.models.published_keys import to_published_keys
from cktf.models.user_network import copy_network, prepare_user_network
from cktf.models.weights_file import (
    is_cktf_weights_file,
    load_network,
    load_state_dict_strictly,
    load_weights,
    read_metadata,
    save_network,
)
from cktf.models.zoo import create, list_networks

__all__ = [
    "FeaturePaths",
    "NetworkSpec",
    "Normalized",
    "build_network",
    "copy_network",
    "create",
    "describe_origin",
    "identify_network",
    "is_cktf_weights_file",
    "is_library_network",
    "list_networks",
    "load_network",
    "load_state_dict_strictly",
    "load_weights",
    "pack_extra_state",
    "parse_network_spec",
    "prepare_user_network",
    "read_metadata",
    "read_state_dict",
    "resolve_network_spec",
    "runs_user_code",
    "save_network",
    "short_sha256",
    "to_published_keys",
]
