"""Part of a labeled set held out, class by class."""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from cktf.errors import DataError

# The same images are held out whatever a run's seed, for its teacher may have another.
VALIDATION_SEED = 0


def sample_per_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """Positions of so many images of each class, ascending.

    For one seed those of a smaller count are among those of a larger one.

    Args:
        labels: [N] int64.
        count: of each class.
        seed: decides which.

    Raises:
        DataError: a class with fewer.

    >>> sample_per_class(torch.tensor([0, 0, 1, 1]), 1, seed=0).shape
    torch.Size([2])
    """
    values = labels.numpy()
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(values):
        own = np.flatnonzero(values == label)
        if len(own) < count:
            raise DataError(
                f"{count} images of each class were asked for, and class {label} has {len(own)}. "
                "Ask for fewer."
            )
        chosen.append(random.permutation(own)[:count])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions that stay for training, and positions that are held out.

    Every class gives the same fraction, rounded to the nearest number of images, but at least one,
    and keeps at least one.

    Args:
        labels: [N] int64.
        fraction: of each class, from 0 to below 1; 0 holds out nothing.
        seed: decides which.

    Returns:
        Two tensors of positions, each ascending; together every position once.

    Raises:
        DataError: a fraction out of range, or a class with a single image.

    >>> train, validation = split_validation(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
    >>> len(train), len(validation)
    (3, 3)
    """
    if not 0 <= fraction < 1:
        raise DataError(f"A fraction to hold out is from 0 to below 1, given {fraction:g}.")
    values = labels.numpy()
    held = np.zeros(len(values), dtype=bool)
    random = np.random.default_rng(seed)
    for label in np.unique(values) if fraction else ():
        own = np.flatnonzero(values == label)
        if len(own) < 2:
            raise DataError(
                f"To hold out a fraction of {fraction:g}, each class gives at least one image and "
                f"keeps one; class {label} has a single image. Add images of it, or leave it out."
            )
        held[random.choice(own, _share(len(own), fraction), replace=False)] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def split_by_name(labels: Tensor, names: Sequence[str], fraction: float) -> tuple[Tensor, Tensor]:
    """As `split_validation`, but an image is held out or not by its name's hash among its class's.

    So an image more or less moves one other at most.

    Args:
        labels: [N] int64, two or more of each class.
        names: of the images.
        fraction: of each class.

    Returns:
        Two tensors of positions, each ascending; together every position once.
    """
    marks = np.array([sha256(n.encode("utf-8", "surrogateescape")).digest() for n in names])
    values = labels.numpy()
    held = np.zeros(len(values), dtype=bool)
    for label in np.unique(values):
        own = np.flatnonzero(values == label)
        held[own[np.argsort(marks[own])[: _share(len(own), fraction)]]] = True
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _share(count: int, fraction: float) -> int:
    """How many of a class are held out: at least one, and not all."""
    return min(max(1, int(fraction * count + 0.5)), count - 1)
