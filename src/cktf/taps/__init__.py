"""Features from any network."""

from cktf.models.feature_paths import FeaturePaths
from cktf.taps.cache_spec import CacheSpec
from cktf.taps.cached import CachedTap
from cktf.taps.classifier import count_logits, replace_classifier, resize_classifier
from cktf.taps.features import Features
from cktf.taps.folding import type_name
from cktf.taps.infer import find_classifier, infer_paths
from cktf.taps.modes import (
    eval_mode,
    fit_memory_format,
    freeze,
    needs_contiguous_images,
    preserve_modes,
    to_device_of,
)
from cktf.taps.shared import SharedTap
from cktf.taps.tap import Tap

TeacherTap = Tap | SharedTap | CachedTap

__all__ = [
    "CacheSpec",
    "CachedTap",
    "FeaturePaths",
    "Features",
    "SharedTap",
    "Tap",
    "TeacherTap",
    "count_logits",
    "eval_mode",
    "find_classifier",
    "fit_memory_format",
    "freeze",
    "infer_paths",
    "needs_contiguous_images",
    "preserve_modes",
    "replace_classifier",
    "resize_classifier",
    "to_device_of",
    "type_name",
]
