"""Hold out part of a labeled set, class by class."""

from collections.abc import Callable, Sequence
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from cktf.errors import DataError

# A run and its teacher may have different seeds; both must hold out the same images.
VALIDATION_SEED = 0


def describe_class(label: int, classes: Sequence[str] | None) -> str:
    """The name of a class, or its number where names are unknown.

    >>> describe_class(1, ["cat", "dog"]), describe_class(1, None)
    ("class 'dog'", 'class 1')
    """
    return f"class {classes[label]!r}" if classes else f"class {label}"


def sample_per_class(
    labels: Tensor, count: int, seed: int, classes: Sequence[str] | None = None
) -> Tensor:
    """Draw the positions of `count` images of each class, ascending.

    With one seed, the images of a smaller count are among those of a larger one.

    Args:
        labels: [N] int64.
        count: images of each class.
        seed: decides the draw.
        classes: names of the classes, for messages.

    Raises:
        DataError: a class with fewer images.

    >>> sample_per_class(torch.tensor([0, 0, 1, 1]), 1, seed=0).shape
    torch.Size([2])
    """
    values = labels.numpy()
    random = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(values):
        members = np.flatnonzero(values == label)
        if len(members) < count:
            raise DataError(
                f"{count} images of each class were requested, and "
                f"{describe_class(int(label), classes)} has {len(members)}. Request fewer."
            )
        chosen.append(random.permutation(members)[:count])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def split_validation(
    labels: Tensor, fraction: float, seed: int, classes: Sequence[str] | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the positions that are held out; the others stay for training.

    Every class gives the same fraction, rounded to the nearest number of images; it gives at least
    one image and keeps at least one.

    Args:
        labels: [N] int64.
        fraction: of each class, from 0 to below 1; 0 holds out nothing.
        seed: decides the draw.
        classes: names of the classes, for messages.

    Returns:
        Positions for training and positions held out, each ascending.

    Raises:
        DataError: a fraction out of range, or a class with a single image.

    >>> train, validation = split_validation(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
    >>> len(train), len(validation)
    (3, 3)
    """
    if not 0 <= fraction < 1:
        raise DataError(f"A fraction to hold out is from 0 to below 1, given {fraction:g}.")
    random = np.random.default_rng(seed)

    def draw(label: int, members: np.ndarray, count: int) -> np.ndarray:
        if len(members) < 2:
            raise DataError(
                f"To hold out a fraction of {fraction:g}, each class gives at least one image and "
                f"keeps one; {describe_class(label, classes)} has a single image. Add images to "
                "it, or remove it."
            )
        return random.choice(members, count, replace=False)

    return _hold_out(labels, fraction, draw)


def split_by_name(labels: Tensor, names: Sequence[str], fraction: float) -> tuple[Tensor, Tensor]:
    """Hold out the images of each class whose names have the smallest hashes.

    When an image is added or removed, at most one other image changes sides.

    Args:
        labels: [N] int64, two or more of each class.
        names: of the images.
        fraction: of each class.

    Returns:
        Positions for training and positions held out, each ascending.
    """
    hashes = np.array([sha256(n.encode("utf-8", "surrogateescape")).digest() for n in names])
    return _hold_out(
        labels, fraction, lambda _, members, count: members[np.argsort(hashes[members])[:count]]
    )


def _hold_out(
    labels: Tensor, fraction: float, choose: Callable[[int, np.ndarray, int], np.ndarray]
) -> tuple[Tensor, Tensor]:
    """Split by class; `choose(label, positions, count)` gives the positions to hold out."""
    values = labels.numpy()
    held_out = np.zeros(len(values), dtype=bool)
    for label in np.unique(values) if fraction else ():
        members = np.flatnonzero(values == label)
        count = min(max(1, int(fraction * len(members) + 0.5)), len(members) - 1)
        held_out[choose(label, members, count)] = True
    return torch.from_numpy(np.flatnonzero(~held_out)), torch.from_numpy(np.flatnonzero(held_out))
