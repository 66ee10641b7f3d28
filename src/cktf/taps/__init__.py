"""Features from any network."""

from cktf.models.paths import FeaturePaths
from cktf.taps.cached import CachedTap
from cktf.taps.classifier import count_logits, new_classifier, resize_classifier
from cktf.taps.features import FEATURES, Features
from cktf.taps.folding import name_of
from cktf.taps.infer import as_before, beside, evaluating, find_classifier, infer_paths
from cktf.taps.kept import Kept
from cktf.taps.shared import SharedTap
from cktf.taps.tap import Tap

TeacherTap = Tap | SharedTap | CachedTap

__all__ = [
    "FEATURES",
    "CachedTap",
    "FeaturePaths",
    "Features",
    "Kept",
    "SharedTap",
    "Tap",
    "TeacherTap",
    "as_before",
    "beside",
    "count_logits",
    "evaluating",
    "find_classifier",
    "infer_paths",
    "name_of",
    "new_classifier",
    "resize_classifier",
]
