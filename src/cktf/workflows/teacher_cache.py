"""The teacher cache of a run: what is kept, of which images, and where."""

import os
from pathlib import Path

from cktf.data import DatasetLoader, MemoryLoader, hash_images
from cktf.engine import autocast_dtype, device_of
from cktf.objectives import WeightedSum
from cktf.recipes import DistillRecipe
from cktf.taps import CachedTap, Features, Tap
from cktf.user_paths import expand_user_path
from cktf.workflows.components import RunComponents


def cached(
    recipe: DistillRecipe, parts: RunComponents, objective: WeightedSum, tap: Tap, example: Features
) -> CachedTap:
    """The teacher's tap, with its features of a finite set of views kept on disk.

    Args:
        recipe: names the folder, the images and their views, and the precision.
        parts: of the run.
        objective: decides what is kept.
        tap: of the teacher.
        example: what it gave for a few images.

    Raises:
        MethodError: the objective reads what is not kept.
        DataError: the disk has no room.
    """
    kept, data, loader = objective.cacheable(), recipe.data, parts.data.train
    assert isinstance(loader, MemoryLoader | DatasetLoader)
    dtype = autocast_dtype(recipe.runtime.precision, device_of(recipe.training()))
    decides = {
        "images": hash_images(parts.data.raw_train),
        "augment": data.augment,
        "precision": str(dtype or "float32"),
    }
    found = CachedTap(
        tap, kept, loader.view, data.views if data.augment else 1, loader.samples, decides,
        _folder(recipe),
    )  # fmt: skip
    found.check_disk_space(example)
    return found


def _folder(recipe: DistillRecipe) -> Path:
    assert recipe.teacher_cache is not None
    if recipe.teacher_cache != "auto":
        return expand_user_path(recipe.teacher_cache)
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_user_path(home) / "cktf" / "teachers"
