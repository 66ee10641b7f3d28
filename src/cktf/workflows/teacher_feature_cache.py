"""The teacher cache of a run: which features it holds, and in which folder."""

import os
from functools import partial

import torch

from cktf.data import DatasetLoader, MemoryLoader, hash_images
from cktf.objectives import WeightedSum
from cktf.recipes import DistillRecipe
from cktf.taps import CachedTap, Features, Tap
from cktf.user_paths import expand_user_path
from cktf.workflows.components import RunComponents


def cached_tap(
    recipe: DistillRecipe,
    components: RunComponents,
    objective: WeightedSum,
    tap: Tap,
    example: Features,
) -> CachedTap:
    """Wrap the teacher's tap so that its features are computed once and read from disk afterwards.

    The recipe names the folder, the images and their views; `example` holds the teacher's features
    of a few images.

    Raises:
        MethodError: the objective reads features that cannot be cached.
        DataError: the features do not fit on the disk.
    """
    data, loader, dtype = recipe.data, components.data.train, components.runtime.dtype
    assert isinstance(loader, MemoryLoader | DatasetLoader)
    identity = {
        "images": hash_images(components.data.raw_train),
        "augment": data.augment,
        "precision": "float32" if dtype == torch.float32 else str(dtype),
    }
    assert recipe.teacher_cache is not None
    folder = expand_user_path(recipe.teacher_cache).absolute()
    if recipe.teacher_cache == "auto":
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = expand_user_path(home).absolute() / "cktf" / "teachers"
    views = data.views if data.augment else 1
    load_view = partial(loader.view, device=components.runtime.device)
    cached = CachedTap(
        tap, objective.cacheable(), load_view, views, loader.samples, identity, folder
    )
    cached.check_disk_space(example)
    return cached
