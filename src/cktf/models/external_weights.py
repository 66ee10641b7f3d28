"""Weights that other programs saved: pickles, plain state dicts, safetensors.

Pickles are loaded with `weights_only=True`, which runs no code. `argparse.Namespace` is allowed,
because many training programs save their options beside the weights.
"""

import argparse
import hashlib
import pickle
from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cktf.errors import CheckpointError
from cktf.models.published_keys import to_published_keys
from cktf.models.zoo import create, list_networks

# Keys under which training programs save a state dict.
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "net", "network", "student", "model_ema")
# Prefixes that wrappers such as DataParallel and torch.compile add to every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
_HASH_DIGITS = 8
_REFERENCE_CLASSES = 10


def read_state_dict(path: Path, expected_keys: Set[str] = frozenset()) -> dict[str, Tensor]:
    """Read the weights in a file, without the prefixes of wrappers.

    Args:
        path: the file.
        expected_keys: keys of the network, if it is known; prefixes that belong to them stay.

    Raises:
        CheckpointError: no such file, a damaged one, one that needs code to be loaded, or one
            without weights.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. Give a run folder or a file.")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = _find_state_dict(content)
    if state is None:
        raise CheckpointError(
            f"{path} holds no weights: neither a state dict, nor one under "
            f"{', '.join(_STATE_KEYS[:4])}. Save model.state_dict()."
        )
    return _strip_prefixes(state, expected_keys)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a safetensors file.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint at {path}.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged ({error})."
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many types
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds more than weights, and opening it could run code, so it was not "
                "opened. Load it where you trust it, and save its model.state_dict() instead."
            ) from error
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged ({type(error).__name__})."
        ) from error


def _find_state_dict(value: Any) -> dict[str, Tensor] | None:
    if not isinstance(value, Mapping):
        return None
    if value and all(isinstance(v, Tensor) for v in value.values()):
        return {str(key): tensor for key, tensor in value.items()}
    for key in _STATE_KEYS:
        if (state := _find_state_dict(value.get(key))) is not None:
            return state
    return None


def _strip_prefixes(state: dict[str, Tensor], expected_keys: Set[str]) -> dict[str, Tensor]:
    if state.keys() == expected_keys:
        return state
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            stripped = {key.removeprefix(prefix): value for key, value in state.items()}
            return _strip_prefixes(stripped, expected_keys)
    return state


def identify_network(state: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Find the network of the library with these keys and shapes: its name and its classes."""
    for name in list_networks():
        expected = _reference_shapes(name)
        shapes = {key: value.shape for key, value in to_published_keys(state, name).items()}
        if shapes.keys() != expected.keys():
            continue
        # Only the classifier's first dimension may differ, by one number of classes.
        classes = {shapes[key][0] for key in expected if shapes[key] != expected[key]}
        if len(classes) <= 1 and all(shapes[key][1:] == expected[key][1:] for key in expected):
            return name, classes.pop() if classes else _REFERENCE_CLASSES
    return None


@cache
def _reference_shapes(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        network = create(name, _REFERENCE_CLASSES)
    return {key: value.shape for key, value in network.state_dict().items()}


def short_sha256(path: Path) -> str:
    """The first 8 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:_HASH_DIGITS]
