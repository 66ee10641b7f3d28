"""Networks by name, checkpoints, and what a network says about itself."""

from cktf.models.checkpoints import (
    describe,
    is_cktf_checkpoint,
    load_network,
    load_state,
    load_weights,
    save_network,
)
from cktf.models.foreign import fingerprint, read_state, seems_to_be
from cktf.models.normalized import Normalized
from cktf.models.paths import FeaturePaths
from cktf.models.sources import (
    Source,
    build_source,
    is_listed,
    located_line,
    parse_source,
    runs_code,
)
from cktf.models.translate import to_published_keys
from cktf.models.zoo import check_name, create, names

__all__ = [
    "FeaturePaths",
    "Normalized",
    "Source",
    "build_source",
    "check_name",
    "create",
    "describe",
    "fingerprint",
    "is_cktf_checkpoint",
    "is_listed",
    "load_network",
    "load_state",
    "load_weights",
    "located_line",
    "names",
    "parse_source",
    "read_state",
    "runs_code",
    "save_network",
    "seems_to_be",
    "to_published_keys",
]
