"""Features from any network."""

from cktf.models.paths import FeaturePaths
from cktf.taps.features import FEATURES, Features
from cktf.taps.folding import name_of
from cktf.taps.infer import evaluating, infer_paths
from cktf.taps.shared import SharedTap
from cktf.taps.tap import Tap

__all__ = [
    "FEATURES",
    "FeaturePaths",
    "Features",
    "SharedTap",
    "Tap",
    "evaluating",
    "infer_paths",
    "name_of",
]
