"""Checkpoints that others saved: published pickles, plain state dicts, safetensors.

Pickles are opened with `weights_only=True`, which runs no code. Those that hold the options of a
training program beside the weights, an `argparse.Namespace`, are let through by name.
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
from torch import Tensor, nn

from cktf.errors import CheckpointError, ModelError
from cktf.models.published_keys import to_published_keys
from cktf.models.zoo import create, list_networks

# Where a training program keeps the weights in what it saves.
_HOLDERS = ("model", "state_dict", "model_state_dict", "net", "network", "student", "model_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.")
_HASHED = 8


def read_state_dict(path: Path, network: nn.Module | None = None) -> dict[str, Tensor]:
    """The weights in a file, whatever saved it, without the prefixes of wrappers.

    Args:
        path: the file.
        network: whose weights they may be; what looks like a prefix stays where its names have it.

    Raises:
        CheckpointError: no such file, one that is damaged or needs code to be opened, or one
            without weights.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}. Give a run folder or a file.")
    found = _state_in(_opened(path))
    if found is None:
        raise CheckpointError(
            f"{path} holds no weights: neither a state dict, nor one under "
            f"{', '.join(_HOLDERS[:4])}. Save model.state_dict()."
        )
    return _bare(found, set() if network is None else network.state_dict().keys())


def _opened(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return _unpickled(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged ({error})."
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds more than weights, and opening it could run code, so it was not "
                "opened. Load it where you trust it, and save its model.state_dict() instead."
            ) from error
        # Damage shows as one of many types.
        raise CheckpointError(
            f"{path} is no checkpoint, or is damaged ({type(error).__name__})."
        ) from error


def _state_in(value: Any) -> dict[str, Tensor] | None:
    if not isinstance(value, Mapping):
        return None
    if value and all(isinstance(v, Tensor) for v in value.values()):
        return {str(key): tensor for key, tensor in value.items()}
    for holder in _HOLDERS:
        if (found := _state_in(value.get(holder))) is not None:
            return found
    return None


def _bare(state: dict[str, Tensor], names: Set[str]) -> dict[str, Tensor]:
    """Without a prefix that all keys have in common, unless they are these names."""
    if state.keys() == names:
        return state
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            return _bare({key.removeprefix(prefix): value for key, value in state.items()}, names)
    return state


def identify_network(state: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """The network of the library that has exactly these weights, and its classes; None if none."""
    for name in list_networks():
        shapes = _shapes(name)
        given = {key: tuple(value.shape) for key, value in _translated(state, name).items()}
        if given.keys() != shapes.keys():
            continue
        classifier = [key for key in shapes if given[key][1:] == shapes[key][1:]]
        others = [key for key in shapes if given[key] != shapes[key]]
        # All but the classifier's rows are the same.
        if len(classifier) == len(shapes) and len({given[key][0] for key in others}) <= 1:
            classes = {given[key][0] for key in others} or {_CLASSES}
            return name, classes.pop()
    return None


_CLASSES = 10


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = create(name, _CLASSES)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _translated(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    try:
        return to_published_keys(state, name)
    except ModelError:
        return dict(state)


def short_sha256(path: Path) -> str:
    """The first digits of a file's SHA-256, by which a user tells checkpoints apart."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:_HASHED]
