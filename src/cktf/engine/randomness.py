"""States of the random generators of a process, in types that a checkpoint can hold."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import set_seed


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's, PyTorch's and the device's generators."""
    _, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    words = torch.from_numpy(keys.astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (words, int(position), int(has_gauss), float(gauss)),
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore the generators from the states that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))


@contextmanager
def preserve_rng(device: torch.device) -> Iterator[dict[str, Any]]:
    """Restore the random generators on exit.

    Yields the states at entry, in a dictionary that is emptied on exit.
    """
    state = random_state(device)
    try:
        yield state
    finally:
        restore_random_state(state, device)
        state.clear()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random generators inside the block; restore them on exit."""
    with preserve_rng(device):
        set_seed(seed)
        yield
