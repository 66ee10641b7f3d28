"""Weights that other programs saved: which tensors of a file are those of a network.

A file may hold a state dict as it is or under a name, more than one, and other things beside them.
Keys may have the prefixes of modules around the network: DataParallel, torch.compile, Lightning.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from cktf.errors import CheckpointError, ModelError
from cktf.models.network_building import build_network
from cktf.models.network_spec import parse_network_spec
from cktf.models.published_keys import to_published_keys
from cktf.models.tensor_files import SAVE_STATE, NumpyObject, find_pickled_module, read_tensor_file
from cktf.models.zoo import create, list_networks

_T = TypeVar("_T")

# Keys under which training programs save a state dict, the first ones first.
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "net", "network", "student", "model_ema")
# Averages of weights over the steps of a training come after the weights themselves.
_AVERAGED = re.compile(r"(^|[^a-z])(ema|averaged?|avg|swa|teacher)([^a-z]|$)", re.IGNORECASE)
_MAX_DEPTH = 5
# Counters that PyTorch and thop save beside weights; no output of a trained network needs them.
_COUNTERS = frozenset({"num_batches_tracked", "n_averaged", "total_ops", "total_params"})
# Networks of other libraries that are named where weights fit no network of this one.
_COMMON_NETWORKS = (
    *(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"torchvision:{name}" for name in (
        "wide_resnet50_2", "resnext50_32x4d", "vgg11", "vgg16", "vgg16_bn", "vgg19", "alexnet",
        "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
        "densenet121", "shufflenet_v2_x1_0", "squeezenet1_1", "convnext_tiny", "swin_t",
        "vit_b_16",
    )),
    *(f"timm:{name}" for name in (
        "resnet26", "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv3_large_100",
        "efficientnet_b0", "convnext_tiny", "vit_tiny_patch16_224", "vit_small_patch16_224",
        "vit_base_patch16_224", "swin_tiny_patch4_window7_224",
    )),
)  # fmt: skip
_HASH_DIGITS = 8
_REFERENCE_CLASSES = 10


class SavedWeights(dict[str, Tensor]):
    """A state dict from a file.

    Attributes:
        note: where in the file it is, and which others there fit as well; empty if neither.
    """

    note: str = ""


def read_state_dict(path: Path, expected_keys: Set[str] = frozenset()) -> SavedWeights:
    """Read the weights in a file, without the prefixes of modules around the network.

    Args:
        path: the file.
        expected_keys: keys of the network, if it is known; else networks of this library are looked
            for.

    Returns:
        Weights that are complete for that network, if there are any, else the first ones.

    Raises:
        CheckpointError: no such file, a damaged one, one that needs code to be loaded, or one
            without weights.
    """
    content = read_tensor_file(path)
    places = sorted(_find_state_dicts(content), key=lambda found: _rank(found[0]))
    if not places:
        raise CheckpointError(f"{path} {_describe_content(content)}")
    required = {key for key in expected_keys if not key.endswith("num_batches_tracked")}

    def fits(state: Mapping[str, Tensor]) -> bool:
        return required <= state.keys() if required else identify_network(state) is not None

    fitting = [
        (place + found, part)
        for place, state in places
        for found, part in _find_parts(state, fits, min(required, default=""))
    ]
    fitting.sort(key=lambda found: _rank(found[0]))
    if not fitting:
        # The most similar ones make the clearest message.
        parts = [_under(state, prefix) for _, state in places for prefix in _prefixes(state)]
        similar = max(parts, key=lambda part: len(required & part.keys()))
        return SavedWeights(similar if required else _without_common_prefix(places[0][1]))
    (place, state), *others = fitting
    weights = SavedWeights(state)
    usual = [(key,) for key in _STATE_KEYS if not _AVERAGED.search(key)]
    if place and (others or place not in usual):
        weights.note = f", the weights at {'.'.join(place)!r} in it"
    if others:
        names = ", ".join(repr(".".join(other)) for other, _ in others[:3])
        weights.note += (
            f"; it also holds weights of this network at {names}: to take others, save them alone "
            "in a file with torch.save"
        )
    return weights


def _find_state_dicts(
    value: Any, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Find each mapping of names to tensors, with its place in a file."""
    if isinstance(value, list | tuple):
        # Tensors without names, such as those of an optimizer, are no state dict.
        named = [item for item in value[:10] if not isinstance(item, Tensor)]
        value = {str(position): item for position, item in enumerate(named)}
    if not isinstance(value, Mapping) or len(place) == _MAX_DEPTH:
        return
    state = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
    # A checkpoint may also hold single numbers as tensors.
    is_state = len(state) == len(value) or any("." in key for key in state)
    if is_state and any(tensor.dim() for tensor in state.values()):
        yield place, state
    for key, item in value.items():
        # The state of an optimizer is numbered.
        if isinstance(key, str) and not isinstance(item, Tensor):
            yield from _find_state_dicts(item, (*place, key))


def _rank(place: tuple[str, ...]) -> list[tuple[int, bool]]:
    """Order places: known keys in their order, then others, then averaged weights."""
    return [
        (_STATE_KEYS.index(key) if key in _STATE_KEYS else len(_STATE_KEYS),
         _AVERAGED.search(key) is not None)
        for key in place
    ]  # fmt: skip


def _find_parts(
    state: dict[str, Tensor], fits: Callable[[Mapping[str, Tensor]], bool], key: str
) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Find the modules in a state dict whose tensors are those of the network, with their paths.

    Args:
        state: tensors by key.
        fits: whether tensors are those of the network.
        key: one of the network's, if it is known.
    """
    whole = _without_common_prefix(state)
    if fits(whole):
        return [((), whole)]
    if key:
        prefixes = {name.removesuffix(key) for name in state if name.endswith(key)}
    else:
        prefixes = _prefixes(state)
    return [
        (tuple(prefix.split(".")[:-1]), part)
        for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
        if (not prefix or prefix.endswith(".")) and fits(part := _under(state, prefix))
    ]


def _prefixes(state: Mapping[str, Tensor]) -> set[str]:
    """The prefixes of all modules in a state dict, and the empty one."""
    return {"", *(name[: dot.end()] for name in state for dot in re.finditer(r"\.", name))}


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys have a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _without_common_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without the modules around all of them, for a message."""
    first = next(iter(state)).partition(".")[0] + "."
    if not all(key.startswith(first) for key in state):
        return state
    return _without_common_prefix(_under(state, first))


def _describe_content(content: Any) -> str:
    """Say what a file without weights holds instead."""
    if (module := find_pickled_module(content)) is not None:
        return (
            f"holds a whole pickled module ({module}), which opens only with weights_only=False, "
            f"by running its code, so it was not opened. {SAVE_STATE}"
        )
    if not isinstance(content, Mapping):
        held = f"a {type(content).__name__}"
    elif any(isinstance(value, NumpyObject) and "." in str(key) for key, value in content.items()):
        held = "arrays of NumPy, which torch.from_numpy converts"
    else:
        held = ", ".join(str(key)[:40] for key in list(content)[:5]) or "nothing"
    return (
        f"holds no weights: no state dict anywhere in it (it holds {held}). Save "
        "model.state_dict() with torch.save."
    )


def drop_counters(state: Mapping[str, _T], expected: Set[str] = frozenset()) -> dict[str, _T]:
    """Leave out the counters that PyTorch and thop save, unless the network has them."""
    return {
        key: value
        for key, value in state.items()
        if key in expected or key.rpartition(".")[2] not in _COUNTERS
    }


def identify_network(state: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Find the network of the library with these keys and shapes: its name and its classes."""
    shapes = drop_counters({key: value.shape for key, value in state.items()})
    for name in list_networks():
        expected = _reference_shapes(name)
        if len(expected) == len(shapes):
            classes = _count_classes(to_published_keys(shapes, name), expected)
            if classes is not None:
                return name, classes
    return None


def describe_origin(state: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """Find the network of this library, or a common one of others, with these keys and shapes.

    Returns:
        Its spec and its classes; None if it is none of them.
    """
    if (found := identify_network(state)) is not None:
        return found
    shapes = drop_counters({key: value.shape for key, value in state.items()})
    for spec in _COMMON_NETWORKS:
        # timm may not be installed.
        with suppress(ModelError):
            classes = _count_classes(shapes, _reference_shapes(spec))
            if classes is not None:
                return spec, classes
    return None


def _count_classes(
    shapes: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]
) -> int | None:
    """The classes of a network, where it has these shapes but for the number of classes."""
    if shapes.keys() != expected.keys():
        return None
    # Only the classifier's first dimension may differ, by one number of classes.
    classes = {shapes[key][0] for key in expected if shapes[key] != expected[key]}
    if len(classes) > 1 or any(shapes[key][1:] != expected[key][1:] for key in expected):
        return None
    return classes.pop() if classes else _REFERENCE_CLASSES


@cache
def _reference_shapes(spec: str) -> dict[str, torch.Size]:
    """Shapes of a network's parameters and buffers by key, without counters."""
    with torch.device("meta"):
        network = (
            build_network(parse_network_spec(spec), _REFERENCE_CLASSES).network
            if ":" in spec
            else create(spec, _REFERENCE_CLASSES)
        )
    return drop_counters({key: value.shape for key, value in network.state_dict().items()})


def short_sha256(path: Path) -> str:
    """The first 8 hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:_HASH_DIGITS]
